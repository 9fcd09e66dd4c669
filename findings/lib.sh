# Sourced by every script here: a temporary folder that goes away at the end, packages in an environment of its own, one check.
set -eu
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cd "$work"

# packages NAME==VERSION ...: installs them into $work/env. Exit status 2 says that nothing could be looked at.
packages() {
    { "${PYTHON:-python3}" -m venv env && env/bin/pip install --quiet --no-compile "$@"; } >install.log 2>&1 || {
        tail -n 5 install.log
        echo "not looked at: could not install $*"
        exit 2
    }
}

# python: runs what stands on standard input, in $work. `seen(true_or_false, sentence)` is there: the script fails where it is not true.
python() {
    cat >seen.py <<'EOF'
import sys


def seen(still_so: bool, sentence: str) -> None:
    if not still_so:
        print(f"CHANGED, no longer so: {sentence}")
        sys.exit(1)
    print(f"still so: {sentence}")
EOF
    cat >finding.py
    env/bin/python -W ignore finding.py
}

# llama_cpp: fetches the build that @node-llama-cpp brings. In python, `from llama_cpp import quantise`: writes small.gguf of full.gguf.
llama_cpp() {
    npm pack --silent @node-llama-cpp/linux-x64@3.22.1 >/dev/null 2>&1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz || {
        echo "not looked at: could not fetch llama.cpp by npm"
        exit 2
    }
    cat >llama_cpp.py <<'EOF'
import ctypes
import glob
from pathlib import Path

folder = Path(glob.glob("package/bins/*")[0]).resolve()
libraries = [ctypes.CDLL(str(next(folder.glob(name))), ctypes.RTLD_GLOBAL) for name in ("libggml-base.so", "libggml.v*.so", "libllama.v*.so")]
libraries[1].ggml_backend_load_all_from_path(str(folder).encode())


class Parameters(ctypes.Structure):
    """The first two fields of llama.cpp's struct; the rest stays as its defaults have it."""

    _fields_ = [("threads", ctypes.c_int32), ("file_type", ctypes.c_int32), ("rest", ctypes.c_uint8 * 248)]


libraries[2].llama_model_quantize_default_params.restype = Parameters


def quantise(file_type: int) -> None:
    """By llama.cpp's number of a file type, on one thread."""
    parameters = libraries[2].llama_model_quantize_default_params()
    parameters.threads, parameters.file_type = 1, file_type
    assert libraries[2].llama_model_quantize(b"full.gguf", b"small.gguf", ctypes.byref(parameters)) == 0, "llama.cpp refused"
EOF
}
