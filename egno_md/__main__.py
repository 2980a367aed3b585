"""``python -m egno_md`` is ``egno-md``."""

from .cli import main

main(prog_name="egno-md")
