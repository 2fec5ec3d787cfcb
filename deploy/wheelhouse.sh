#!/bin/sh
# Fill deploy/wheelhouse with Sparsecam and all it needs as wheels, for an image build without a network.
#
#   deploy/wheelhouse.sh [PYTHON]       PYTHON: of the version and platform of the image's base (default: python3)
#
# Uses whatever index this machine's pip is set up for, passwords included: none of that reaches the image. Run it again
# after every change of the source; the wheels of the run before are removed first. For the trainer's image too:
# EXTRAS=notify,train deploy/wheelhouse.sh
set -eu

python=${1:-python3}
here=$(cd "$(dirname "$0")" && pwd)

found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $found in
    3.10 | 3.11) ;;
    *)
        echo "wheelhouse: $python is Python $found; expected 3.10 or 3.11, the version of the image's base" >&2
        exit 1
        ;;
esac

rm -f "$here"/wheelhouse/*.whl
# redis-py asks for async-timeout only before Python 3.11.3: this Python may be past that and the base's not (Debian 12: 3.11.2).
"$python" -m pip wheel --quiet --wheel-dir "$here/wheelhouse" "$here/..[${EXTRAS:-notify}]" async-timeout
echo "wheelhouse: $(find "$here/wheelhouse" -name '*.whl' | wc -l) wheels for Python $found; to build from the index again, remove them"
