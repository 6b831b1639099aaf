#!/bin/bash
# Train on one node of a job: one rank for each GPU. Run it on every node with the same arguments:
#
#     NODES=2 NODE_RANK=0 GPUS=8 MASTER_ADDR=HOST MASTER_PORT=29500 launch/train.sh CONFIG store=STORE out=OUT
#
# SIGTERM or Ctrl-C stops all ranks of all nodes after the current step, with a checkpoint. Exit codes:
#   0    the run is finished, or another node was asked to stop
#   1    a rank crashed or a node was lost: start again
#   2    bad input, such as a wrong setting or a damaged file: fix it first
#   3    a loss, gradient or weight is bad: look at bad-step-N.json first
#   143  this node was asked to stop: start again to resume
set -u

# A session of its own, by which its processes are found.
setsid composer --nproc "${GPUS:-1}" --world_size "$((${NODES:-1} * ${GPUS:-1}))" \
  --node_rank "${NODE_RANK:-${SLURM_NODEID:-0}}" --master_addr "${MASTER_ADDR:-127.0.0.1}" \
  --master_port "${MASTER_PORT:-29500}" trainer/train.py "$@" &
launcher=$!
asked=0
# Asks the ranks, not their launcher: the launcher kills its ranks 30 s after it is asked to stop.
trap 'asked=1; pkill -TERM -P "$launcher" || kill -TERM "$launcher"' TERM INT
while kill -0 "$launcher" 2>/dev/null; do
  wait "$launcher" # a signal ends it early
done
wait "$launcher"
code=$?

if ((asked)); then
  # Slurm asks the launcher as well. Then it may end before its ranks, which are still saving.
  while pgrep -s "$launcher" >/dev/null; do sleep 1; done
  ((code == 0 || code > 3)) && code=143
elif ((code > 143)); then
  code=1 # the launcher killed ranks after another one failed
fi
exit "$code"
