#!/bin/bash
# A worker in the shell: takes tasks from Redis, answers with text, spoken if espeak-ng is installed.
#
#     AUDIO_ROOT=/tmp/aivtuber_tasks REDIS_URL=redis://localhost:6379 ./worker.sh
#
# Needs redis-cli and jq.
set -eu
url=${REDIS_URL:-redis://localhost:6379}
audio_root=${AUDIO_ROOT:-/tmp/aivtuber_tasks}
mkdir -p "$audio_root"

echo "worker waits for tasks"
while task=$(redis-cli -u "$url" --raw brpop ai_tasks 0 | tail -n +2); do
    task_id=${task%% *}
    reply="You said: ${task#* }"
    audio_file=
    if command -v espeak-ng > /dev/null; then
        audio_file=$task_id.wav
        espeak-ng -w "$audio_root/.$audio_file" -- "$reply"
        mv "$audio_root/.$audio_file" "$audio_root/$audio_file"
    fi
    result=$(jq -nc --arg text "$reply" --arg audio_file "$audio_file" \
        '{text: $text} + if $audio_file == "" then {} else {audio_file: $audio_file} end')
    redis-cli -u "$url" publish "task_response:$task_id" "$result" > /dev/null
done
