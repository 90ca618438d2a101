#!/usr/bin/env bash
# Compares a model with a baseline, as action.yml does. It also runs by hand:
#   MODEL=small.onnx BASELINE=model.onnx DATA=val/ MAX_DROP=1% MAX_SIZE=50% bash .github/compare.sh
# What isn't given isn't checked. Exit status: 0 all limits are held, 1 one is missed, 2 bad input.
set -euo pipefail

python=${ONNXPRUNE_PYTHON:-python3}
folder=${FOLDER:-$(mktemp -d)}
mkdir -p "$folder"
documents=()
status=0

# Runs a command, keeps its JSON document, and goes on if a limit is missed: the receipt is to show all of them.
measure() {
    local file=$folder/$1.json code=0
    "$python" -m onnxprune "$@" --format json > "$file" || code=$?
    if [ "$code" -gt "$status" ]; then status=$code; fi
    documents+=("$file")
}

: "${MODEL:?the model to check}" "${BASELINE:?the model to compare it with}"
if [ -z "${DATA:-}" ] && [ -n "${MAX_DROP:-}${MIN_METRIC:-}" ]; then
    echo "error: a limit on accuracy needs data" >&2
    exit 2
fi

measure benchmark "$BASELINE" "$MODEL" --seconds "${SECONDS_EACH:-2}" \
    ${MIN_SPEEDUP:+--min-speedup "$MIN_SPEEDUP"} ${MAX_SIZE:+--max-size "$MAX_SIZE"} ${THREADS:+--threads "$THREADS"}
if [ -n "${DATA:-}" ]; then
    measure evaluate "$MODEL" --against "$BASELINE" --data "$DATA" --examples 8 \
        ${PREPROCESS:+--preprocess "$PREPROCESS"} ${MAX_DROP:+--max-drop "$MAX_DROP"} ${MIN_METRIC:+--min "$MIN_METRIC"}
fi
if [ "${VERIFY:-false}" = true ]; then
    measure verify "$BASELINE" "$MODEL"
fi

"$python" -m onnxprune report "${documents[@]}" --report "$folder/receipt.md" --report "$folder/report.html" --force -q
cat "$folder/receipt.md" >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}"
if [ -n "${GITHUB_OUTPUT:-}" ]; then
    printf '%s\n' "receipt=$folder/receipt.md" "report=$folder/report.html" >> "$GITHUB_OUTPUT"
fi
exit "$status"
