"""The list of what can be set, against the configurations that it lists."""

from __future__ import annotations

import pytest

from vigcli.config.archs import VARIANTS, arch_config
from vigcli.config.fields import describe
from vigcli.config.load import get_path


@pytest.mark.parametrize(
    "name", [*{config.family: name for name, config in VARIANTS.items()}.values(), "timm:resnet18"]
)
def test_every_path_is_there_with_its_value_range_and_text(name: str) -> None:
    config = arch_config(name)
    data = config.model_dump(mode="json")
    found = describe(config)
    assert {field.path.partition("[")[0] for field in found} == set(data) - {"family"}
    for field in found:
        paths = (
            [field.path.replace("[i]", f"[{i}]") for i in range(len(field.value))]
            if "[i]" in field.path
            else [field.path]
        )
        assert [get_path(data, path) for path in paths] == (field.value if "[i]" in field.path else [field.value])
        assert field.what.endswith((".", ")"))
        assert field.allowed
        for path in paths if not name.startswith("timm:") else ():
            config.changed({path: get_path(data, path)})  # a space can name it


def test_ranges_are_read_off_the_fields() -> None:
    found = {field.path: field for field in describe(arch_config("mobilevigv2_ti"))}
    assert found["stages[i].width"].value == [32, 64, 128, 256]
    assert found["stages[i].width"].allowed == "1 to 65536"
    assert found["drop_path_rate"].allowed == "0 to below 1"
    assert found["stages[i].mixer"].allowed == "mgc, svga, dagc, knn, degc, fc, none"
    assert found["distilled"].allowed == "true, false"
