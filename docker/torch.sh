#!/usr/bin/env bash
# Installs torch and what it needs into /opt/torch, from /wheels, from TORCH_INDEX or, with CUDA, from PyPI.
set -euo pipefail

sources=(--find-links /wheels)
[[ -z ${TORCH_INDEX:-} ]] || sources+=(--extra-index-url "$TORCH_INDEX")
wanted=$(grep '^torch==' constraints.txt)
case $ACCELERATOR in
cpu)
    if [[ -z ${TORCH_INDEX:-} ]] && ! compgen -G '/wheels/torch-*' >/dev/null; then
        echo "docker/wheels has no wheel of torch and TORCH_INDEX is empty: give one of them for a CPU image, or" \
            "--build-arg ACCELERATOR=cuda for PyPI's torch, which brings CUDA" >&2
        exit 1
    fi
    wanted+=+cpu
    ;;
cuda) ;;
*)
    echo "ACCELERATOR is '$ACCELERATOR'; give cpu or cuda" >&2
    exit 1
    ;;
esac
# numpy belongs to tilecov, which comes later; constraints of torch itself would refuse the local version +cpu.
grep -v '^torch==' constraints.txt >others.txt
python3 -m pip --python /opt/torch/bin/python install --only-binary :all: "${sources[@]}" --constraint others.txt "$wanted"
# Headers, test programs and import libraries are for those who build torch or compile against it.
torch=$(/opt/torch/bin/python -c 'import importlib.util; print(*importlib.util.find_spec("torch").submodule_search_locations)')
rm -rf "$torch/include" "$torch/test" "$torch"/bin/*[tT]est* "$torch"/bin/protoc*
