"""A command for tests of what runs commands: its result is the value of one environment variable."""

import json
import os
import sys

if __name__ == "__main__":
    print(json.dumps({"value": os.environ.get(sys.argv[1])}))
