#!/bin/sh
# The REST interface with curl. REST=http://host:8501 MODEL=sentiment sh serving/clients/curl.sh
set -eu
REST=${REST:-http://127.0.0.1:8501}
MODEL=${MODEL:-sentiment}
ask() { echo "> $*" >&2; curl --silent --show-error --fail-with-body "$@"; echo; }

ask "$REST/v1/models/$MODEL"                                     # states of the versions
ask "$REST/v1/models/$MODEL/metadata"                            # signatures
ask -d '{"instances": ["what a lovely day", "never again"]}' "$REST/v1/models/$MODEL:predict"
ask -d '{"inputs": {"text": ["what a lovely day"]}}' "$REST/v1/models/$MODEL:predict"
ask -d '{"instances": [{"b64": "Z29vZA=="}]}' "$REST/v1/models/$MODEL:predict"   # bytes
ask -d '{"signature_name": "classify", "examples": [{"text": "not bad"}]}' "$REST/v1/models/$MODEL:classify"
