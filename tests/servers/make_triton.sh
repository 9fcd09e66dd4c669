#!/bin/sh
# Makes the environment that Triton's tests run in: the server out of the nvidia-pytriton wheel, its Python backend, and
# what the backend imports: make_triton.sh [FOLDER], by default $TRIMLINE_SERVERS/triton, or .servers/triton here.
# The stub that runs model.py links Debian's libpython3.11: apt-get install libpython3.11 python3.11.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
place="${1:-${TRIMLINE_SERVERS:-$here/.servers}/triton}"
python="${PYTHON:-python3.11}"
if [ -x "$place/tritonserver" ]; then
    echo "Triton is in $place already."
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "The stub that is used needs Python 3.11; set PYTHON=")'
ldconfig -p | grep -q 'libpython3\.11\.so\.1\.0' || { echo "libpython3.11 is missing: apt-get install libpython3.11 python3.11" >&2; exit 1; }
rm -rf "$place"
"$python" -m venv "$place"
"$place/bin/pip" install --quiet 'nvidia-pytriton==0.7.0' 'numpy<2' 'onnxruntime>=1.23' 'tokenizers>=0.22' 'tritonclient[all]'

site=$(echo "$place"/lib/python3.11/site-packages)
server="$site/pytriton/tritonserver"
mkdir -p "$place/backends/python"
cp "$server"/backends/python/* "$place/backends/python/" 2>/dev/null || true
cp "$server/python_backend_stubs/3.11/triton_python_backend_stub" "$place/backends/python/"
test -f "$place/backends/python/libtriton_python.so"

# One program that starts it: PYTHONHOME is the stub's (Debian's Python), since another 3.11's library does not fit it.
# Written last, so that a broken installation is made anew.
cat > "$place/tritonserver.part" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$site/nvidia_pytriton.libs\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export PYTHONHOME=/usr TRIMLINE_SITE_PACKAGES="$site"
unset PYTHONPATH
exec "$server/bin/tritonserver" --backend-directory="$place/backends" "\$@"
END
chmod +x "$place/tritonserver.part"
mv "$place/tritonserver.part" "$place/tritonserver"
echo "Triton is in $place."
