"""Takes what Terraform's AWS provider says of the types that deploy/terraform uses.

    npm pack @cdktn/provider-aws@25.7.0 && tar xzf cdktn-provider-aws-25.7.0.tgz
    tests/python/aws_schema.py package/lib >tests/python/aws_schema.json

That package is made from the provider's own schema, and too large (400 MB) to install for
each run of the tests. Run it again for a new version of the provider or a new type.
"""

import json
import re
import sys
from pathlib import Path

RESOURCES = (
    "elasticache_parameter_group", "elasticache_replication_group", "elasticache_subnet_group",
    "elasticache_user", "elasticache_user_group", "iam_role", "iam_role_policy", "kms_alias",
    "kms_key", "memorydb_acl", "memorydb_cluster", "memorydb_parameter_group",
    "memorydb_subnet_group", "memorydb_user", "security_group",
    "vpc_security_group_ingress_rule",
)
DATA = ("caller_identity", "partition", "region")
MEMBER = re.compile(r"// (\w+) - computed: (\w+), optional: (\w+), required: (\w+)")
TYPED = re.compile(
    r'(\w+): \{\s*value: (.*?),\s*isBlock: (true|false),\s*type: "(\w+)",\s*storageClassType: "(\w+)"',
    re.S,
)
SIMPLE = {"string": "string", "number": "number", "boolean": "bool"}


def type_of(kind, storage):
    """In Terraform's notation."""
    if kind == "simple":
        return SIMPLE[storage]
    of = {"stringList": "string", "numberList": "number", "booleanList": "bool", "stringMap": "string"}
    return [kind, of[storage]] if storage in of else [kind, "dynamic"]


def members(text, types):
    found = {}
    parts = dict(re.findall(r'new (\w+?)(?:List|OutputReference)\(this, "(\w+)"', text))
    parts = {name: struct for struct, name in parts.items()}
    for name, computed, optional, required in MEMBER.findall(text):
        value, block, kind, storage = types.get(name, ("", "false", "simple", "string"))
        entry = {"computed": computed == "true", "optional": optional == "true", "required": required == "true"}
        if block == "true":
            inner = re.sub(r"List$", "", storage)
            entry |= {"block": inner[0].lower() + inner[1:], "nesting": kind}
        elif name in parts and name not in types:
            # Only read: a list of objects.
            entry["objects"] = parts[name][0].lower() + parts[name][1:]
        else:
            entry["type"] = type_of(kind, storage)
        found[name] = entry
    return found


def schema(path):
    text = re.sub(r"//# sourceMapping.*", "", path.read_text())
    mappers = dict(re.findall(r"function (\w+)ToHclTerraform\(struct\) \{(.*?)\n\}", text, re.S))
    classes = re.findall(r"(?ms)^class (\w+) extends ([\w.]+) \{(.*?)^\}", text)
    blocks, top = {}, None
    for name, parent, body in classes:
        if parent.endswith("ComplexObject"):
            struct = name.removesuffix("OutputReference")
            key = struct[0].lower() + struct[1:]
            types = {t[0]: t[1:] for t in TYPED.findall(mappers.get(key, ""))}
            blocks[key] = members(body, types)
        elif parent.endswith(("TerraformResource", "TerraformDataSource")):
            start = body.index("synthesizeHclAttributes") if "synthesizeHclAttributes" in body else len(body)
            top = members(body, {t[0]: t[1:] for t in TYPED.findall(body[start:])})

    def nest(entries):
        for entry in entries.values():
            if "objects" in entry:
                inner = nest(dict(blocks[entry.pop("objects")]))
                entry["type"] = ["list", ["object", {n: e.get("type", "string") for n, e in inner.items()}]]
            if "block" in entry:
                # The provider's sdk wants a list or a set; at most one shows as "struct".
                entry["block"] = nest(dict(blocks[entry["block"]]))
        return entries

    return nest(top)


def main():
    (lib,) = map(Path, sys.argv[1:])
    readme = (lib.parent / "README.md").read_text()
    (version,) = set(re.findall(r"provider version (\d+\.\d+\.\d+)", readme))
    kinds = {"resource": ("", RESOURCES), "data": ("data-aws-", DATA)}
    found = {
        kind: {
            f"aws_{name}": schema(lib / (prefix + name.replace("_", "-")) / "index.js")
            for name in names
        }
        for kind, (prefix, names) in kinds.items()
    }
    print("{")
    print(f' "provider": "hashicorp/aws {version}",')
    for last, (kind, types) in enumerate(found.items()):
        print(f' "{kind}": {{')
        for index, (name, entries) in enumerate(types.items(), 1):
            comma = "," if index < len(types) else ""
            print(f'  "{name}": {json.dumps(entries, sort_keys=True)}{comma}')
        print(" }" + ("" if last else ","))
    print("}")


if __name__ == "__main__":
    main()
