"""Rules trained on the page are those of the trainer, and a training can be cancelled at any time."""

from __future__ import annotations

import pytest
import torch

import captum_learnprop as cl
from captum_learnprop.errors import LearnpropError
from captum_learnprop.web.examples import many_pictures
from captum_learnprop.web.job import Cancelled
from captum_learnprop.web.learning import families, start_training
from captum_learnprop.web.offered import OfferedModel
from captum_learnprop.web.visit import Visit


def test_rules_are_those_of_the_trainer(net: OfferedModel) -> None:
    pictures = many_pictures(True)[:5]
    found = start_training(net, pictures, "gates", steps=2).result()
    prepare = net.known.prepare
    images = torch.stack([prepare.normalize(prepare.pixels(one)) for one in pictures])  # type: ignore[union-attr]
    expected = cl.RuleTrainer(net.known.net, steps=2).fit(images)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert found.training["steps_done"] == 2


def test_progress_rises_to_the_end(net: OfferedModel) -> None:
    job = start_training(net, many_pictures(True)[:8], "LRP", steps=3)
    shares = [0.0]
    while job.running:
        shares.append(job.wait(0.01).share)
    assert job.result().composite_name == "learned_epsilon_gamma_box"
    assert shares == sorted(shares)
    assert job.wait(0.0).share == 1.0
    assert job.wait(0.0).words == "learning: step 3 of 3"


def test_cancel_while_deletions_are_measured_and_while_it_learns(net: OfferedModel) -> None:
    before = {name: value.clone() for name, value in net.known.net.state_dict().items()}
    for words in ("measuring", "learning"):
        job = start_training(net, many_pictures(True)[:8], "gates", steps=200)
        while words not in job.wait(0.002).words:
            assert job.running
        job.cancel()
        with pytest.raises(Cancelled, match="the training was cancelled"):
            job.result()
    assert all(torch.equal(value, before[name]) for name, value in net.known.net.state_dict().items())


def test_transformers_have_rules_of_their_own(net: OfferedModel, transformer: OfferedModel) -> None:
    assert families(transformer)["gates"] == "learned_transformer"
    assert families(net)["gates"] == "learned_gradient"
    found = start_training(transformer, many_pictures(True)[:4], "gates", steps=1).result()
    assert found.composite_name == "learned_transformer"


def test_what_cannot_be_trained(net: OfferedModel) -> None:
    pictures = many_pictures(True)[:4]
    with pytest.raises(LearnpropError, match="4 pictures at least, there are 3"):
        start_training(net, pictures[:3], "gates")
    with pytest.raises(LearnpropError, match="no rules 'AttnLRP' for reference:resnet-digits: choose gates, LRP"):
        start_training(net, pictures, "AttnLRP")
    with pytest.raises(LearnpropError, match="steps must be 1 to 200, got 201"):
        start_training(net, pictures, "gates", 201)


def test_one_training_at_a_time(visit: Visit) -> None:
    pictures = many_pictures(True)[:8]
    job = visit.begin("training", lambda: start_training(visit.model, pictures, "gates", 200))
    with pytest.raises(LearnpropError, match="one training goes on already: wait for it, or cancel it"):
        visit.begin("training", lambda: start_training(visit.model, pictures, "gates", 1))
    job.cancel()
    with pytest.raises(Cancelled):
        job.result()
