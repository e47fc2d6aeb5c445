"""What the README and the map say of commands is so."""

import re
from importlib.util import find_spec
from pathlib import Path

from tools import quickstart, vitforge

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_what_the_readmes_commands_write_lies_under_runs() -> None:
    commands = [line for line in README.splitlines() if line.startswith("    ")]
    flags = "output|workdir|model_repository|checkpoint"
    paths = re.findall(rf"--(?:{flags})=([\w./-]+)", "\n".join(commands))
    assert len(paths) > 8
    assert [path for path in paths if not path.startswith("runs/")] == []
    assert re.findall(r"open\('(\w+)/", "\n".join(commands)) == ["runs"]


def test_the_readmes_table_names_the_stages_as_they_are_printed() -> None:
    rows = re.findall(r"^\| ([\w ]+) \| (?:fp32|int8) \|", README, re.MULTILINE)
    assert rows == [variant.stage for variant in quickstart.VARIANTS]


def test_the_map_names_the_entry_file_of_every_command() -> None:
    text = (ROOT / "WORKSPACE.md").read_text()
    for name, verb in vitforge.VERBS.items():
        spec = find_spec(verb.module)
        assert spec is not None
        package = bool(spec.submodule_search_locations)
        file = verb.module.replace(".", "/") + ("/__main__.py" if package else ".py")
        assert f"| `vitforge {name}` | `{verb.module}` | `{file}` |" in text
        assert (ROOT / file).is_file()
