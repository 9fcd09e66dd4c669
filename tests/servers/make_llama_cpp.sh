#!/bin/sh
# llama-cpp-python with its server, in an environment of its own: make_llama_cpp.sh [FOLDER], by default
# $TRIMLINE_SERVERS/llama_cpp, or .servers/llama_cpp here.
# PyPI has its source only; compiling takes 10 to 15 minutes of processor time. The wheel is kept beside the environment.
set -eu
version=0.3.36
here=$(cd "$(dirname "$0")/../.." && pwd)
folder="${1:-${TRIMLINE_SERVERS:-$here/.servers}/llama_cpp}"
wheels=$(dirname "$folder")/wheels
test -f "$folder/.made-$version" && exit 0
"${PYTHON:-python3}" -m venv "$folder"
mkdir -p "$wheels"
if ! ls "$wheels"/llama_cpp_python-$version-*.whl >/dev/null 2>&1; then
    # For this processor, and one job at a time: compiling must not starve whatever else the machine does.
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF" \
    CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-1} nice -n 15 \
        "$folder/bin/pip" wheel --no-deps --no-binary llama-cpp-python --wheel-dir "$wheels" llama-cpp-python==$version
fi
wheel=$(ls "$wheels"/llama_cpp_python-$version-*.whl)
"$folder/bin/pip" install --quiet "$wheel[server]"
"$folder/bin/python" -c "import llama_cpp, llama_cpp.server"
touch "$folder/.made-$version"
