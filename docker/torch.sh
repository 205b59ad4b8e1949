#!/usr/bin/env bash
# Installs torch and what it needs into /opt/torch: with ACCELERATOR=cpu a CPU wheel from /wheels, or else from
# TORCH_INDEX; with ACCELERATOR=cuda PyPI's. WHEELS and TARGET stand for /wheels and /opt/torch in tests.
set -euo pipefail

readonly wheels=${WHEELS:-/wheels} python=${TARGET:-/opt/torch}/bin/python
# torch asks for setuptools and names no version.
readonly SETUPTOOLS=82.0.1

wanted=$(grep '^torch==' constraints.txt)
sources=()
case $ACCELERATOR in
cpu)
    # Only here: pip prefers +cpu to the same version without it, and would give a CUDA image that has no CUDA.
    wanted+=+cpu
    if compgen -G "$wheels/torch-${wanted#torch==}-*.whl" >/dev/null; then
        sources=(--find-links "$wheels")
    elif [[ -n ${TORCH_INDEX:-} ]]; then
        sources=(--extra-index-url "$TORCH_INDEX")
    else
        echo "docker/wheels has no wheel of $wanted and TORCH_INDEX is empty: give one of them for a CPU image, or" \
            "--build-arg ACCELERATOR=cuda for PyPI's torch, which brings CUDA" >&2
        exit 1
    fi
    ;;
cuda) ;;
*)
    echo "ACCELERATOR is '$ACCELERATOR'; give cpu or cuda" >&2
    exit 1
    ;;
esac
# numpy belongs to tilecov, which comes later; constraints of torch itself would refuse the local version +cpu.
{ grep -v '^torch==' constraints.txt && echo "setuptools==$SETUPTOOLS"; } >others.txt
python3 -m pip --python "$python" install --only-binary :all: "${sources[@]}" --constraint others.txt "$wanted"
# Headers, test programs and import libraries are for those who build torch or compile against it.
torch=$("$python" -c 'import importlib.util; print(*importlib.util.find_spec("torch").submodule_search_locations)')
rm -rf "$torch/include" "$torch/test" "$torch"/bin/*[tT]est* "$torch"/bin/protoc*
