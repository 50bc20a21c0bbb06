"""A run folder: plan -> score -> select, written down, and taken up again after any interruption."""

from tithe.run.results import PlanResult, ScoreResult, SelectResult
from tithe.run.score import plan, score
from tithe.run.select import select
from tithe.run.talk import Talk

__all__ = ["PlanResult", "ScoreResult", "SelectResult", "Talk", "plan", "score", "select"]
