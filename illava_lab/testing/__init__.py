"""The promises of a strategy, and what checks them: `check_strategy`, and the same for pytest."""

from illava_lab.testing.check import (
    PROMISES,
    BrokenPromise,
    Report,
    Result,
    check_strategies,
    check_strategy,
    example_tokens,
    parametrize_with_checks,
    variants,
)

__all__ = [
    "PROMISES",
    "BrokenPromise",
    "Report",
    "Result",
    "check_strategies",
    "check_strategy",
    "example_tokens",
    "parametrize_with_checks",
    "variants",
]
