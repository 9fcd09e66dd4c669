#!/bin/sh
# Optimum's runtime, in an environment of its own: make_optimum.sh [FOLDER], by default
# $TRIMLINE_SERVERS/optimum, or .servers/optimum here.
# optimum-onnx pins transformers below 4.58, and the optimum that has no ONNX in it is another one.
set -eu
version=0.1.0
here=$(cd "$(dirname "$0")/../.." && pwd)
folder="${1:-${TRIMLINE_SERVERS:-$here/.servers}/optimum}"
test -f "$folder/.made-$version" && exit 0
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 optimum-onnx==$version 'transformers<4.58' onnxruntime
"$folder/bin/python" -c "from optimum.onnxruntime import ORTModelForCausalLM"
touch "$folder/.made-$version"
