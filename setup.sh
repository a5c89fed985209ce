#!/bin/sh
# Makes .venv beside this file: fedhpc, all that it needs, Open MPI and the tools that check it. No root, no compiler.
# Safe to run again: it does nothing while pyproject.toml, constraints.txt and this file are as they were.
# PYTHON=/path/to/python3.12 sh setup.sh takes another Python than python3.
set -eu
cd -- "$(dirname -- "$0")"
python=${PYTHON:-python3}

fail() {
    printf 'setup.sh: %s\nHINT: %s\n' "$1" "$2" >&2
    exit 1
}

# A virtual environment holds its own absolute path, so a tree that was moved or copied needs a new one.
wanted=$({ pwd; cat pyproject.toml constraints.txt setup.sh; } | cksum)
stamp=.venv/fedhpc-setup
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c ''; then
    exit 0
fi

command -v "$python" >/dev/null || fail "there is no $python" \
    "Debian, Ubuntu: apt install python3 python3-venv; or name another: PYTHON=/path/to/python3.12 sh setup.sh"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" -V) is too old, fedhpc needs 3.11 or newer" \
    "name a newer one: PYTHON=/path/to/python3.12 sh setup.sh; on a cluster, load its Python module first"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments" \
    "Debian, Ubuntu: apt install python3-venv"

echo 'setup.sh: installing into .venv; a few minutes at most, 1.5 GB (more where PyTorch comes with CUDA)' >&2
"$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    --editable '.[mpi,data,n4,weights,audit,export,test]'
# Its auditing module alone is used, and that needs no JAX, which would be 600 MB.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps jax-privacy

# More hospitals than cores is normal on one machine: mpirun may start them all. It binds none, because by default each
# rank, with all its threads, gets a single core.
cat >>.venv/etc/prte-mca-params.conf <<'EOT'
rmaps_default_mapping_policy = :oversubscribe
hwloc_default_binding_policy = none
EOT
# Open MPI refuses to run as root (containers, CI) and can be told otherwise by the environment only.
echo 'export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1' >>.venv/bin/activate

echo "$wanted" >"$stamp"
