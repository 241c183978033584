"""A view as one HTML file that works without a kernel and without a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delt.errors import DeltError
from delt.lab.view import SCRIPT, STYLE, View

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
body {{ font: 14px system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.4em; }} dl {{ display: grid; grid-template-columns: max-content auto; gap: .2em 1em; }} dd {{ margin: 0; }}
{style}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
{numbers}
<script type="application/json" id="views">{views}</script>
<script type="module">
{script}
{start}
</script>
</body>
</html>
"""

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:"  # nothing from outside

START = """
function standIn(values) {  // what a notebook's model is to the view, without a kernel behind it
  const heard = {};
  return {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; (heard["change:" + name] || []).forEach((call) => call()); },
    on: (event, call) => (heard[event] ||= []).push(call),
    off: (event, call) => { heard[event] = (heard[event] || []).filter((other) => other !== call); },
    save_changes: () => {},
  };
}
for (const values of JSON.parse(document.getElementById("views").textContent)) {
  for (const name in values.sheets) values.sheets[name] = Uint8Array.from(atob(values.sheets[name]), (c) => c.charCodeAt(0));
  const el = document.body.appendChild(document.createElement("div"));
  render({ model: standIn(values), el });
}
"""


def save_html(path: Path | str, title: str, about: str, views: Sequence[View], numbers: Sequence[tuple[str, str]] = ()) -> Path:
    """Write views as one page with everything inside: program, style, numbers, pictures.

    Args:
        numbers: facts above the views, as (name, text).

    Raises:
        DeltError: the file cannot be written.
    """
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in numbers)
    text = PAGE.format(
        policy=POLICY,
        title=html.escape(title),
        about=html.escape(about),
        numbers=f"<dl>{facts}</dl>" if facts else "",
        style=STYLE.read_text(encoding="utf-8"),
        script=SCRIPT.read_text(encoding="utf-8"),
        start=START,
        views=json.dumps([_values(view) for view in views]).replace("<", "\\u003c"),  # no name can end the script
    )
    path = Path(path).expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DeltError(f"cannot write {path}: {error.strerror or error}; choose another path") from error
    return path


def _values(view: View) -> dict[str, Any]:
    values = {name: getattr(view, name) for name in ("kind", "state", "at", "label", "difference", "picked")}
    return {**values, "sheets": {name: base64.b64encode(data).decode() for name, data in view.sheets.items()}}
