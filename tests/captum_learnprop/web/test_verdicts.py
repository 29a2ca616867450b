from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.analysis import analyse
from captum_learnprop.evaluation.backward_rules import backward_rule
from captum_learnprop.explanation.framing import framed
from captum_learnprop.images import Preprocessing
from captum_learnprop.web.examples import many_pictures
from captum_learnprop.web.job import Cancelled
from captum_learnprop.web.verdicts import picture_count, rule_choices, start_analysis
from captum_learnprop.web.visit import Visit


def test_verdicts_are_those_of_the_analysis(visit: Visit) -> None:
    pictures = many_pictures(True)[:2]
    found = start_analysis(visit, ["gradient"], pictures).result()
    net = visit.model.known.net
    inputs = torch.cat([framed(one, visit.model.known.prepare).input for one in pictures])
    with torch.no_grad():
        targets = net(inputs).argmax(1)
    expected = analyse(net, [backward_rule("gradient", net, inputs)], inputs, targets)
    assert found.reports[0].verdicts == expected.reports[0].verdicts
    assert set(found.reports[0].verdicts) == {"weights", "class", "input"}
    assert found.model == "reference:resnet-digits"


def test_it_is_cancelled_amid_a_rule(visit: Visit) -> None:
    job = start_analysis(visit, ["lrp", "guided_backprop"], many_pictures(True)[:8])
    while "measuring lrp" not in job.wait(0.002).words:
        assert job.running
    job.cancel()
    with pytest.raises(Cancelled, match="the analysis was cancelled"):
        job.result()
    assert not visit.model.known.net._forward_pre_hooks


def test_of_large_inputs_few_are_analysed(visit: Visit) -> None:
    assert picture_count(visit) == 8
    known = visit.model.known
    visit.model = replace(visit.model, known=replace(known, prepare=Preprocessing(224, 224)))
    assert picture_count(visit) == 3
    visit.model = replace(visit.model, known=replace(known, prepare=Preprocessing(900, 900)))
    assert picture_count(visit) == 2


def test_what_cannot_be_analysed(visit: Visit) -> None:
    assert {"gradient", "lrp"} <= set(rule_choices(visit))
    assert "attnlrp" not in rule_choices(visit)
    with pytest.raises(LearnpropError, match=r"no rule 'nets\.py'"):
        start_analysis(visit, ["nets.py"], many_pictures(True)[:1])
    with pytest.raises(LearnpropError, match="choose some"):
        start_analysis(visit, [], many_pictures(True)[:1])
    with pytest.raises(LearnpropError, match="no picture"):
        start_analysis(visit, ["gradient"], [])
