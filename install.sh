#!/bin/sh
# Set up .venv, as all targets of the Makefile do first. Where nothing is to be done, it ends at once. From the environment:
#
#   STACK   declared (requirements.lock) or newest (requirements-newest.lock). Without it: that of .venv, else declared.
#   PYTHON  a Python 3.11, 3.12 or 3.13. Without it: that of .venv, else the first that fits of python3.11, python3.12,
#           python3.13 and python3, else 3.11, which uv fetches.
#
# 3.11 comes first: the results in docs/ were measured with it, and aarch64 has more wheels for it than for the others.
set -eu
case ${PYTHON:-} in
  /*) ;;
  */*) PYTHON=$PWD/$PYTHON ;;
esac
cd -P "$(dirname "$0")" # of all names of a folder, the one without links
stamp=.venv/.installed # line 1: the stack, and where .venv was made; line 2: a sum of what is installed
made=$(sed -n 1p $stamp 2>/dev/null || true)
stack=${STACK:-${made%% *}}
stack=${stack:-declared}

say() { echo "install.sh: $*" >&2; }
fail() {
  say "$@"
  exit 2
}

[ $# = 0 ] || fail "takes no arguments, but variables before its name: STACK=newest ./install.sh"

# "fits", or what is wrong with a program. It has to be run: shims of pyenv exist for versions that are not chosen.
check() {
  "$1" - 2>/dev/null <<'END' || echo 'it does not run'
import sys
version = "%d.%d" % sys.version_info[:2]
verdict = "fits"
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    verdict = "it is Python " + version
else:
    try:
        import ensurepip, venv
    except ImportError:
        verdict = "it cannot make environments without the package python%s-venv" % version
print(verdict)
END
}

# The version of a Python and where it is installed, also if it is that of an environment.
identity() { "$1" -c 'import os, sys; print("%d.%d in" % sys.version_info[:2], os.path.realpath(sys.base_prefix))'; }

find_python() {
  for name in "${PYTHON:-.venv/bin/python}" python3.11 python3.12 python3.13 python3; do
    [ "$(check "$name")" = fits ] || continue
    "$name" -c 'import sys; print(sys._base_executable)' # not that of .venv, which is about to be deleted
    return
  done
  uv=$(find_uv) || fail 'no Python 3.11, 3.12 or 3.13 is here, and no uv to fetch one. Install one of these Pythons (on' \
    'Debian and Ubuntu: python3.X and python3.X-venv), or uv: https://docs.astral.sh/uv/getting-started/installation/'
  say "no Python 3.11, 3.12 or 3.13 is here: uv fetches 3.11 into $("$uv" python dir)"
  export UV_PYTHON_PREFERENCE=only-managed
  { "$uv" python install 3.11 >&2 && "$uv" python find 3.11; } ||
    fail 'uv could not fetch Python 3.11. Install Python 3.11, 3.12 or 3.13, or set PYTHON to the path of one.'
}

# A uv, if need be in a .venv of any Python 3, which is about to be made new.
find_uv() {
  command -v uv && return
  python3 -m venv --clear .venv >&2 && .venv/bin/python -m pip install --quiet 'uv>=0.5' >&2 && echo .venv/bin/uv
}

case $stack in
  declared) lock=requirements.lock ;;
  newest) lock=requirements-newest.lock ;;
  *) fail "STACK=$stack is not a stack. Stacks: declared, newest." ;;
esac
if [ -n "${PYTHON:-}" ] && wrong=$(check "$PYTHON") && [ "$wrong" != fits ]; then
  fail "PYTHON=$PYTHON does not fit: $wrong. Name a Python 3.11, 3.12 or 3.13, or leave PYTHON out."
fi

# Why .venv is made new: versions of two stacks or two Pythons do not mix, and its programs name its folder.
why=
wrong=$(check .venv/bin/python)
if [ "$wrong" != fits ]; then
  why="its Python does not fit: $wrong"
elif [ -n "${PYTHON:-}" ] && [ "$(identity "$PYTHON")" != "$(identity .venv/bin/python)" ]; then
  why="its Python is $(identity .venv/bin/python)"
elif [ -n "$made" ] && [ "$made" != "$stack $PWD" ]; then
  why="it holds the stack $made"
fi
if [ -n "$why" ]; then
  [ ! -d .venv ] || say "makes .venv new: $why"
  python=$(find_python)
  "$python" -m venv --clear --without-pip .venv
  echo "$stack $PWD" >$stamp
fi

sum=$(cat $lock pyproject.toml | cksum)
[ "$(sed -n 2p $stamp 2>/dev/null)" != "$sum" ] || exit 0
say "installs the $stack stack for Python $(identity .venv/bin/python) into .venv (7 GB, about a minute)"
.venv/bin/python -m ensurepip >/dev/null
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
# -c: for the packages that pyproject.toml overrides, uv takes its ranges in the place of the lines of -r.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps -r $lock -c $lock -e .
printf '%s\n%s\n' "$stack $PWD" "$sum" >$stamp
