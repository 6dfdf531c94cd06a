"""Holds answers against their schemas with Python's jsonschema: lines of schema, whole and text come on standard input."""

import json
import sys

import jsonschema

n = cut = 0
faults = []
for line in sys.stdin:
    answer = json.loads(line)
    n += 1
    if not answer["whole"]:
        cut += 1
        continue
    validator = jsonschema.validators.validator_for(answer["schema"], default=jsonschema.Draft202012Validator)
    try:
        value = json.loads(answer["text"])
        validator(answer["schema"]).validate(value)
    except (json.JSONDecodeError, jsonschema.ValidationError) as fault:
        faults.append(f"{answer['name']}: {answer['text'][:300]}: {str(fault)[:300]}")
print("\n".join(faults))
print(f"{n} answers, {cut} cut by their length, {len(faults)} that do not validate")
assert n > 0 and not faults
print("all rules hold")
