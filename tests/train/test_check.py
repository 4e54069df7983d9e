"""Recipes that no network can be trained by are refused before the first step."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.tiny import CONFIG
from vigcli.config.recipe import Recipe
from vigcli.errors import ConfigError
from vigcli.train.check import check

RECIPE: dict[str, Any] = {
    "arch": CONFIG.model_dump(mode="json"),
    "epochs": 2,
    "batch_size": 8,
    "optimizer": {"lr": 1e-3},
    "schedule": {"warmup_epochs": 0},
}


def _recipe(**changes: Any) -> Recipe:
    return Recipe.parse(RECIPE | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["stage"]}, "no part 'stage'"),
        ({"freeze": ["stages[7]"]}, "no part 'stages[7]'"),
        ({"freeze": ["stem", "stages", "head"]}, "nothing is left to learn"),
        ({"schedule": {"warmup_epochs": None, "warmup_steps": 20}}, "warm-up takes 20 steps, and the run has 20"),
        ({"arch": "vig_ti", "resolution": 160, "multiscale": [160, 192]}, "has another size at 192 px"),
    ],
)
def test_what_the_network_or_the_pictures_do_not_allow(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as error:
        check(_recipe(**changes), 20)
    assert error.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": ["stem", "stages[0]", "stages[1][0]"]},
        {"multiscale": [96, 160]},
        {"arch": "mobilevit_xxs", "multiscale": [64, 96]},  # 3 x 3 tokens, in patches of 2,
        {"schedule": {"warmup_epochs": None, "warmup_steps": 19}},
    ],
)
def test_what_they_allow(changes: dict[str, Any]) -> None:
    check(_recipe(**changes), 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": {"warmup_epochs": 1, "warmup_steps": 10}}, "both of epochs and steps"),
        ({"schedule": {"warmup_epochs": None}}, "neither of epochs and steps"),
        ({"schedule": {"warmup_epochs": 2}}, "leave no epoch to train"),
        ({"schedule": {"warmup_epochs": 0, "min_lr": 0.1}}, "min_lr = 0.1 is above"),
        ({"schedule": {"name": "constant", "warmup_epochs": 0, "cooldown_epochs": 1}}, "no cool-down"),
        ({"accumulate": 3}, "does not divide batch_size = 8"),
        ({"accumulate": 8, "augment": {"mixup": 0.1}}, "micro-batches of 1 are odd"),
        ({"multiscale": [96, 100]}, "100 px: "),
        ({"multiscale": [64, 96]}, "64 px: "),  # both ends of a link are the same token
        ({"multiscale": [96, 96]}, "different resolutions"),
        ({"multiscale": [96]}, "different resolutions"),
        ({"freeze": ["stages.0"]}, "is not a path|no such|stages"),
        ({"freeze": ["stages[0"]}, "is not a path"),
        ({"optimizer": {"lr": 1e-3, "name": "sgd", "eps": 1e-6}}, "eps is nothing to sgd"),
        ({"optimizer": {"lr": 1e-3, "nesterov": False}}, "nesterov is nothing to adamw"),
        ({"optimizer": {"lr": 1e-3, "name": "sgd", "momentum": 0.0}}, "needs a momentum"),
        ({"distillation": {"teacher": "nothing"}}, "no network that could teach"),
        ({"distillation": {"teacher": "timm:regnety_160", "temperature": 2.0}}, "hard distillation has no temperature"),
        ({"distillation": {"teacher": "a.safetensors", "weights": "b.pth"}}, "brings its own weights"),
    ],
)
def test_contradictions_are_refused_with_a_hint(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("[", r"\[")) as error:
        _recipe(**changes)
    assert "\n" in str(error.value.errors()[0]["ctx"]["error"]), "no hint"
