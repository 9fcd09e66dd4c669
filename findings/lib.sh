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
