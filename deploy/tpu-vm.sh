#!/usr/bin/env bash
# Trains on a spot TPU VM, or on all hosts of a pod slice, and continues after every preemption until the run is done.
#
#   gcloud auth login && ssh-add ~/.ssh/google_compute_engine
#   PROJECT=my-project BUCKET=my-bucket deploy/tpu-vm.sh --model=gpt2-xl --freeze=first24 --data=gs://my-bucket/my.txt
#
# It runs on your machine and takes the flags of `python -m train`. The run is in gs://BUCKET/runs/NAME. Ctrl-C keeps
# the VM, and the same command continues; a run that is done deletes the VM.
set -euo pipefail

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
  cat << END
Set by the environment:
  PROJECT  project of Google Cloud                                   (needed)
  BUCKET   bucket with a hierarchical namespace, see deploy/README   (needed)
  NAME     name of the VM and of the run                             ($NAME)
  ZONE     zone of the TPUs                                          ($ZONE)
  TYPE     type of the TPU                                           ($TYPE)
  VERSION  version of the VM's image, which depends on TYPE          ($VERSION)
  WAIT     seconds between attempts                                  ($WAIT)
END
}

NAME=${NAME:-jaxgpt} ZONE=${ZONE:-us-central1-a} WAIT=${WAIT:-60}
TYPE=${TYPE:-v5litepod-16} VERSION=${VERSION:-v2-alpha-tpuv5-lite}
GCSFUSE=3.8.0 PYTHON=3.12 # the image's own Python is too old
case "${1:-}" in -h | --help) usage && exit ;; esac
if [ -z "${PROJECT:-}" ] || [ -z "${BUCKET:-}" ]; then
  usage >&2
  exit 2
fi

if ! command -v gcloud > /dev/null; then
  echo "tpu-vm: gcloud is not installed: https://cloud.google.com/sdk/docs/install" >&2
  exit 2
fi

say() { echo "tpu-vm: $*" >&2; }

tpu() { # tpu VERB [FLAG…]
  gcloud compute tpus tpu-vm "$1" "${@:2}" --project="$PROJECT" --zone="$ZONE" --quiet
}

state() { tpu describe "$NAME" --format='value(state)' 2> /dev/null || true; }

on_all_hosts() { # on_all_hosts SCRIPT [ARGUMENT…]
  local command
  command="bash -c $(printf '%q ' "$@")"
  tpu ssh "$NAME" --worker=all --command="$command"
}

# shellcheck disable=SC2016 # expanded on the hosts
INSTALL='set -e
cd
if ! command -v gcsfuse > /dev/null; then
  curl -fsSLo gcsfuse.deb "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$2/gcsfuse_$2_amd64.deb"
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y ./gcsfuse.deb
fi
rm -rf source
mkdir -p bucket source
mountpoint -q bucket || gcsfuse --implicit-dirs "$1" bucket
[ -x .local/bin/uv ] || curl -fsSL https://astral.sh/uv/install.sh | sh
tar -xf source.tar -C source
.local/bin/uv venv --allow-existing --python="$3" venv
.local/bin/uv pip install --python=venv/bin/python --reinstall-package=jaxgpt "./source[tpu,gcs]"'

set_up() {
  tpu scp "$folder/source.tar" "$NAME:" --worker=all && on_all_hosts "$INSTALL" install "$BUCKET" "$GCSFUSE" "$PYTHON"
}

# A broken connection may have left a run, which is told to save and exit before the next begins: gcloud connects again
# by itself. gcloud itself exits with 1 and 2 too, so that a hundred is added to those codes of the program.
# shellcheck disable=SC2016
TRAIN='cd || exit
exec 9>> train.lock
flock --nonblock 9 || { kill "$(cat train.pid)"; flock 9; }
PYTHONUNBUFFERED=1 venv/bin/python -m train "$@" &
echo $! > train.pid
wait $!
code=$?
exit $((code == 1 || code == 2 || code == 70 ? code + 100 : code))'

train() { on_all_hosts "$TRAIN" train --out="bucket/runs/$NAME" "$@" --coordinator=auto --resume; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar -cf "$folder/source.tar" -C "$(dirname "$0")/.." --exclude=__pycache__ \
  convert entry_points jaxgpt train pyproject.toml README.md LICENSE

failures=0
while true; do
  now=$(state)
  if [ "$now" != READY ]; then
    if [ -n "$now" ]; then
      say "$NAME is $now: deleting it"
      tpu delete "$NAME" || true
    fi
    say "making $NAME, $TYPE in $ZONE"
    until tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" --spot --scopes=cloud-platform \
      2> "$folder/refusal"; do
      cat "$folder/refusal" >&2
      grep -Eiq 'capacity|stockout|exhausted|unavailable|internal error|already exists' "$folder/refusal" || exit 2
      say "it could not be made; trying again in $WAIT s"
      sleep "$WAIT"
      [ -z "$(state)" ] || continue 2
    done
    failures=0
  fi
  code=0
  { set_up && train "$@"; } || code=$?
  [ "$code" -eq 0 ] || now=$(state)
  case "$code-$now" in
    0-*)
      say "done: gs://$BUCKET/runs/$NAME; deleting $NAME"
      tpu delete "$NAME" || say "$NAME is still there and costs money"
      exit 0
      ;;
    101-READY | 102-READY | 170-READY)
      code=$((code - 100))
      say "trying again would not help (exit code $code); $NAME is still there and costs money"
      exit "$code"
      ;;
    75-*)
      failures=0
      say "stopped and saved; continuing"
      ;;
    *-READY)
      failures=$((failures + 1))
      say "exit code $code, although $NAME was not preempted ($failures of 5)"
      [ "$failures" -lt 5 ] || exit "$code"
      ;;
    *) say "$NAME was preempted" ;;
  esac
  sleep "$WAIT"
done
