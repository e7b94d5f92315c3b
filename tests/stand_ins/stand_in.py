"""A stage's command in miniature: bytes that depend on all that the stage declares, and on nothing else."""

import hashlib
import json
import sys
from pathlib import Path

from ruamel.yaml import YAML


def main(stage: str) -> None:
    """Writes what stand_in.json says of `stage`."""
    entry = json.loads(Path("stand_in.json").read_text(encoding="utf-8"))[stage]
    seed = hashlib.sha256(stage.encode())
    for file, keys in entry["params"].items():
        content = YAML(typ="safe").load(Path(file).read_text(encoding="utf-8"))
        for key in keys:
            value = content
            for part in key.split("."):
                value = (value or {}).get(part)
            seed.update(json.dumps([key, value], sort_keys=True).encode())
    for name in entry["reads"]:
        path = Path(name)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                seed.update(file.as_posix().encode() + file.read_bytes())
    for name, size in entry["writes"].items():
        written = hashlib.shake_256(seed.digest() + name.encode())
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            Path(name).write_text(json.dumps({"value": int.from_bytes(written.digest(3))}) + "\n")
        elif name.endswith(".bin"):
            Path(name).write_bytes(written.digest(size))
        else:
            Path(name).write_text(written.hexdigest(size // 2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
