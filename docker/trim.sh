#!/usr/bin/env bash
# Takes out of site-packages, its argument, what tilecov never loads: a third of the bytes beside torch.
set -euo pipefail
cd "$1"

# Packages' tests of themselves.
find . -type d \( -name tests -o -path ./tornado/test \) -prune -exec rm -rf {} +

# Symbols for debuggers, four fifths of these libraries.
strip --strip-debug numcodecs/*.so

# AWS has 400 services; s3fs speaks to S3 and to those that give credentials.
if [[ -d botocore/data ]]; then
    find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -rf {} +
fi

# imagecodecs has 100 codecs; tilecov decodes PNG, JPEG and WebP with it (pipeline/images.py), all else with Pillow.
find imagecodecs -name '*.so' ! -name '_spng.*' ! -name '_deflate.*' ! -name '_jpeg8.*' ! -name '_webp.*' ! -name '_shared*' ! -name '_imcd.*' -delete
used=$(find imagecodecs -name '*.so' -exec ldd {} + | awk '$3 ~ /imagecodecs\.libs/ { print $3 }' | xargs -n 1 basename | sort -u)
for library in imagecodecs.libs/*; do
    grep -qxF "$(basename "$library")" <<<"$used" || rm "$library"
done
