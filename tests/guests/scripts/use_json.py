import json
import sys

document = {
    "numbers": [0, -1, 3.25, 1e300, 2**70],
    "text": 'quotes " and \\ and ünïcödé and \u2028',
    "nested": {str(i): [None, True, False, {"i": i}] for i in range(200)},
}
text = json.dumps(document, sort_keys=True, indent=1)
assert json.loads(text) == document
print(len(text))
print(text[:400])
print(json.dumps(document["numbers"], separators=(",", ":")))
try:
    json.loads('{"a": [1, 2}')
except json.JSONDecodeError as error:
    print(error)
for line in sys.stdin:
    print(json.dumps(json.loads(line), sort_keys=True))
