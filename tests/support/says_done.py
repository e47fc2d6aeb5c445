"""A command for tests of what runs commands: its result lists what it finds in the folder it is given."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(json.dumps({"left": sorted(path.name for path in folder.iterdir()) if folder.exists() else []}))
    folder.mkdir(exist_ok=True)
