"""Writes the pages of all settings: every choice of every config group, with what its class says of it."""

from pathlib import Path

from omegaconf import OmegaConf
from sphinx.application import Sphinx

CONF = Path(__file__).parents[1] / "conf"
PAGES = Path(__file__).parent / "reference" / "settings"
INDEX = """# Settings

Every choice of every config group, as `conf/` has it: its settings, their defaults and what they may be. On the command
line a setting is `GROUP.NAME=VALUE`, as in `method.percentile=99.9`.

```{{toctree}}
:maxdepth: 2

{groups}
```

## The root of all settings

```yaml
{root}
```
"""


def pages() -> dict[str, str]:
    """Name and text of the page of each config group, and of their index."""
    groups = {file.parent.relative_to(CONF).as_posix() for file in CONF.glob("*/**/*.yaml")}
    names = {group: group.replace("/", "_") for group in sorted(groups)}
    root = (CONF / "config.yaml").read_text().strip()
    return {name: _group(group) for group, name in names.items()} | {
        "index": INDEX.format(groups="\n".join(names.values()), root=root)
    }


def _group(group: str) -> str:
    choices = (_choice(group, file) for file in sorted((CONF / group).glob("*.yaml")))
    return "\n".join([f"# {group}\n", *choices])


def _choice(group: str, file: Path) -> str:
    target = str(OmegaConf.load(file).get("_target_", ""))
    told = f"```{{eval-rst}}\n.. autoclass:: {target}\n   :no-index:\n```\n\n" if target.startswith("bitsweep.") else ""
    return f"## {group}={file.stem}\n\n{told}```yaml\n{file.read_text().strip()}\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them; a page that has not changed is not made again."""

    def write(_: Sphinx) -> None:
        PAGES.mkdir(exist_ok=True)
        made = {PAGES / f"{name}.md": text for name, text in pages().items()}
        for file in set(PAGES.iterdir()) - set(made):
            file.unlink()
        for file, text in made.items():
            if not file.exists() or file.read_text() != text:
                file.write_text(text)

    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
