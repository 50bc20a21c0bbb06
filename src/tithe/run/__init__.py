"""Run plan, score and select in a run folder, and resume them after any interruption."""

from tithe.report.reporter import Reporter
from tithe.run.pipeline import select
from tithe.run.results import PlanResult, ScoreResult, SelectResult
from tithe.run.score import plan, score

__all__ = ["PlanResult", "Reporter", "ScoreResult", "SelectResult", "plan", "score", "select"]
