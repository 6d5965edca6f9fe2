#!/bin/bash
# One worker of a run, in a pod: says who the workers are, starts or goes on, ends with the run.
# Reads RECIPE RUN WORKERS PORT JOBSET (jobset.yaml sets them); arguments go to tfllm train.
# TFJob sets TF_CONFIG itself. docs/distribution.md
set -u
if [ -z "${TF_CONFIG:-}" ]; then
  hosts=""
  for ((index = 0; index < WORKERS; index++)); do
    hosts+="${hosts:+, }\"$JOBSET-workers-0-$index.$JOBSET:$PORT\""
  done
  task="{\"type\": \"worker\", \"index\": $JOB_COMPLETION_INDEX}"
  export TF_CONFIG="{\"cluster\": {\"worker\": [$hosts]}, \"task\": $task}"
fi
resume=()
if [ -f "$RUN/recipe.yaml" ]; then resume=(--resume); fi

# Kubernetes tells this shell to end, and it tells the worker, which saves its state first.
stopped=""
trap 'stopped=1; kill -TERM "$worker"' TERM
tfllm train "$RECIPE" --output "$RUN" "${resume[@]}" "$@" &
worker=$!
wait "$worker"
status=$?
if [ -n "$stopped" ]; then  # the first wait was interrupted, whether the worker has ended or not
  wait "$worker"
  ended=$?
  if [ "$ended" -ne 127 ]; then status=$ended; fi  # 127: the first wait had its status already
fi

# A run that was stopped in good order is not done: the pod must be started again.
if [ "$status" -eq 0 ] && [ ! -f "$RUN/summary.json" ]; then exit 75; fi
exit "$status"
