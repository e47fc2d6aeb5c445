"""Makes the committed *_pb2 files again: python -m protos.generate, from the root of the repository.

Run it in an environment of its own that holds grpcio-tools 1.76: its protoc writes protobuf 6 code, which runs on the
runtimes 6 and 7.
"""

import subprocess
import sys
from pathlib import Path

_ROOM = Path(__file__).resolve().parent
_DEFAULT_POOL = "from google.protobuf import descriptor_pool as _descriptor_pool"
_OWN_POOL = "from protos import pool as _descriptor_pool"


def main() -> None:
    """Compiles every .proto of this room and moves `inference` into its own descriptor pool."""
    sources = [f"protos/{path.name}" for path in sorted(_ROOM.glob("*.proto"))]
    out = ["--python_out=.", "--pyi_out=.", "--grpc_python_out=."]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *out, *sources], cwd=_ROOM.parent, check=True
    )
    (_ROOM / "bundle_pb2_grpc.py").unlink()  # has no service
    inference = _ROOM / "inference_pb2.py"
    text = inference.read_text()
    if _DEFAULT_POOL not in text:
        raise SystemExit(
            "protoc writes another import of the descriptor pool than this script knows; adapt it"
        )
    inference.write_text(text.replace(_DEFAULT_POOL, _OWN_POOL))


if __name__ == "__main__":
    main()
