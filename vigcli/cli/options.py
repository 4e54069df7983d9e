"""Options that several commands share, spelt and explained once."""

from __future__ import annotations

import click


class Integer(click.IntRange):
    """Whole numbers in a range; click itself complains of "a valid integer range"."""

    name = "integer"


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a configuration value: stages[0].width=48."
)
recipe_set_option = click.option(
    "--set", "settings", multiple=True, metavar="PATH=VALUE",
    help="Change a value of the recipe, or of its network: epochs=90, arch.stages[0].width=48.",
)  # fmt: skip
seed_option = click.option("--seed", type=Integer(0, 2**31 - 1), default=0, show_default=True)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
output_option = click.option("-o", "--output", type=click.Path(), help="Where to write; default: a new run in runs/.")
resolution_option = click.option(
    "--resolution", type=Integer(32, 1024), metavar="PX", help="Input height and width; default: the network's own."
)
num_classes_option = click.option("--num-classes", type=Integer(2, 65536), metavar="N", help="Classes; default 1000.")
units_option = click.option(
    "--units", type=click.Choice(("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")),
    help="Of a Mac or iPhone: what CoreML may run on; default: ALL.",
)  # fmt: skip
iterations_option = click.option(
    "--iterations", type=Integer(10, 10_000), metavar="N", help="Of a Mac or iPhone: inferences a round; default: 50."
)
device_name_option = click.option("--name", help='Of a Mac or iPhone: what people call it: "iPhone 13 mini".')
team_option = click.option(
    "--team", metavar="ID", help="Of an iPhone: the Apple developer team that signs the app there."
)
table_option = click.option(
    "--table",
    "table_name",
    default="iphone13-mini",
    show_default=True,
    metavar="TABLE",
    help="Latency table, by name or file.",
)
tables_option = click.option(
    "--table",
    "table_names",
    multiple=True,
    default=("iphone13-mini",),
    show_default=True,
    metavar="TABLE",
    help="Latency table, by name or file; several to compare devices, which must all meet a budget.",
)
