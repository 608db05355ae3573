"""Refuses settings of the objective that contradict each other. Plain values only, no torch."""

from __future__ import annotations

from megatron_apo.config import KlConfig, ObjectiveConfig
from megatron_apo.objective.presets import PRESETS

_CHOICES = {
    "objective.advantage.baseline": ("group", "leave_one_out"),
    "objective.dads.curve": ("one_minus_exp", "exp"),
    "objective.kl.estimator": ("k1", "k2", "k3"),
    "objective.kl.schedule": ("constant", "grpo_d"),
    "objective.kl.placement": ("loss", "reward"),
    "objective.kl.reduction": ("sequence_mean", "token_mean"),
    "objective.mismatch.correction": ("none", "truncate", "mask"),
    "objective.mismatch.level": ("token", "sequence"),
    "objective.importance": ("token", "sequence"),
    "objective.reduction": ("token_mean", "sequence_mean", "sequence_sum", "constant", "microbatch_token_mean"),
    "objective.old_logprobs": ("trainer", "engine"),
    "objective.overlong.policy": ("train", "mask", "punish"),
}
_APO = ("apo", "apo_dads_only", "apo_stcr_only", "view_r1_exact")
# The settings that each schedule of the KL coefficient reads; the other one's are refused beside it.
SCHEDULE_KEYS = {
    "constant": ("coefficient",),
    "grpo_d": ("minimum", "maximum", "exploration_steps", "exploration_share"),
}


def has_kl(kl: KlConfig) -> bool:
    """Whether the coefficient is above 0 at any step, so that a reference model is needed."""
    return kl.maximum > 0 if kl.schedule == "grpo_d" else kl.coefficient > 0


def exploration_steps(kl: KlConfig, steps: int) -> int:
    """GRPO-D's exploration steps of a run of ``steps``, however they are said."""
    return round(kl.exploration_share * steps) if kl.exploration_share else kl.exploration_steps


def validate_objective(settings: ObjectiveConfig, group_size: int, steps: int) -> None:
    """ValueError for the first contradiction; ``group_size`` responses per prompt, ``steps`` of the whole run."""
    if group_size < 2:
        raise ValueError(
            f"sampling.group_size={group_size}: must be at least 2; a group of one always has zero advantage"
        )
    values = {
        "objective.advantage.baseline": settings.advantage.baseline,
        "objective.dads.curve": settings.dads.curve,
        "objective.kl.estimator": settings.kl.estimator,
        "objective.kl.schedule": settings.kl.schedule,
        "objective.kl.placement": settings.kl.placement,
        "objective.kl.reduction": settings.kl.reduction,
        "objective.mismatch.correction": settings.mismatch.correction,
        "objective.mismatch.level": settings.mismatch.level,
        "objective.importance": settings.importance,
        "objective.reduction": settings.reduction,
        "objective.old_logprobs": settings.old_logprobs,
        "objective.overlong.policy": settings.overlong.policy,
    }
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise ValueError(f"{key}={values[key]}: must be one of {', '.join(choices)}")
    _check_numbers(settings)
    _check_schedule(settings.kl)
    if settings.kl.schedule == "grpo_d":
        _check_grpo_d(settings.kl, steps)
    _check_mismatch(settings)
    _check_kl_term(settings)
    _check_parts(settings)


def _check_kl_term(settings: ObjectiveConfig) -> None:
    if settings.drop_zero_variance and settings.kl.placement == "reward" and has_kl(settings.kl):
        raise ValueError(
            "objective.kl.placement=reward: must be loss with objective.drop_zero_variance=true; a KL in the rewards "
            "gives every group some variance"
        )
    if settings.dads.enabled and settings.kl.placement == "reward":
        raise ValueError(
            "objective.kl.placement=reward: must be loss with objective.dads.enabled=true; DADS weights the KL of "
            "responses by the sign of an advantage that a KL in the reward is already part of"
        )
    if settings.name in _APO and not settings.dads.enabled and not has_kl(settings.kl):
        raise ValueError(
            f"objective.kl.coefficient={settings.kl.coefficient:g}: must be above 0 with "
            f"objective.name={settings.name}, an objective with a KL term (APO's is 0.001); for none start from grpo"
        )
    if settings.dads.enabled and not has_kl(settings.kl):
        key = "maximum" if settings.kl.schedule == "grpo_d" else "coefficient"
        raise ValueError(
            f"objective.kl.{key}=0: must be above 0 with objective.dads.enabled=true; DADS weights the KL term "
            "(APO's is 0.001), or switch DADS off"
        )


def _check_numbers(settings: ObjectiveConfig) -> None:
    if not settings.stcr.base > 1:
        raise ValueError(
            f"objective.stcr.base={settings.stcr.base}: must be above 1; the weight of a longer wrong response grows "
            "with it"
        )
    if not settings.advantage.epsilon >= 0:
        raise ValueError(f"objective.advantage.epsilon={settings.advantage.epsilon}: must not be negative")
    if not 0 < settings.clip_low < 1:
        raise ValueError(f"objective.clip_low={settings.clip_low}: must lie between 0 and 1; it bounds a ratio below")
    if settings.microbatch_sequences < 1:
        raise ValueError(f"objective.microbatch_sequences={settings.microbatch_sequences}: must be at least 1")
    if not settings.clip_high > 0:
        raise ValueError(f"objective.clip_high={settings.clip_high}: must be above 0; it bounds a ratio above")
    overlong = settings.overlong
    if not 0 < overlong.buffer <= 1:
        raise ValueError(
            f"objective.overlong.buffer={overlong.buffer}: must be above 0 and at most 1; it is a share of "
            "sampling.max_tokens (DAPO's is 0.2)"
        )
    if not overlong.weight > 0:
        raise ValueError(
            f"objective.overlong.weight={overlong.weight}: must be above 0; objective.overlong.policy=train punishes "
            "nothing"
        )
    if not settings.kl.coefficient >= 0:
        raise ValueError(
            f"objective.kl.coefficient={settings.kl.coefficient}: must not be negative; 0 leaves the KL term out"
        )


def _check_mismatch(settings: ObjectiveConfig) -> None:
    mismatch = settings.mismatch
    if mismatch.correction == "none":
        return
    if settings.old_logprobs == "engine":
        raise ValueError(
            f"objective.mismatch.correction={mismatch.correction}: needs objective.old_logprobs=trainer; the ratio to "
            "the engine's log-probabilities holds the mismatch already"
        )
    if mismatch.correction == "truncate":
        if not mismatch.upper >= 1:
            raise ValueError(
                f"objective.mismatch.upper={mismatch.upper}: must be at least 1 with "
                "objective.mismatch.correction=truncate; engine and trainer agree at a weight of 1"
            )
        if mismatch.lower:
            raise ValueError(
                f"objective.mismatch.lower={mismatch.lower}: must be 0 with objective.mismatch.correction=truncate, "
                "which bounds weights above only; mask has both bounds"
            )
        return
    for key, value, fits in (
        ("lower", mismatch.lower, 0 <= mismatch.lower < 1),
        ("upper", mismatch.upper, mismatch.upper > 1),
    ):
        if not fits:
            raise ValueError(
                f"objective.mismatch.{key}={value}: 0 <= lower < 1 < upper must hold with "
                "objective.mismatch.correction=mask; outside them nothing is trained on, and 1 is where engine and "
                "trainer agree"
            )


def _check_schedule(kl: KlConfig) -> None:
    for schedule, keys in SCHEDULE_KEYS.items():
        for key in keys:
            value = getattr(kl, key)
            if value and schedule != kl.schedule:
                raise ValueError(
                    f"objective.kl.{key}={value:g}: must be 0 with objective.kl.schedule={kl.schedule}, which does not "
                    f"read it; set objective.kl.schedule={schedule}, or {' and '.join(SCHEDULE_KEYS[kl.schedule][:2])}"
                )


def _check_parts(settings: ObjectiveConfig) -> None:
    """One of APO's presets without one of its parts, or with another's, would be logged under a wrong name."""
    parts = {name: (PRESETS[name]["stcr"]["enabled"], PRESETS[name]["dads"]["enabled"]) for name in _APO}
    given = (settings.stcr.enabled, settings.dads.enabled)
    if settings.name not in parts or given == parts[settings.name]:
        return
    own = {"stcr": parts[settings.name][0], "dads": parts[settings.name][1]}
    key, value = next((key, has) for (key, wanted), has in zip(own.items(), given, strict=True) if has != wanted)
    named = next((name for name, has in parts.items() if has == given), "grpo")
    raise ValueError(
        f"objective.{key}.enabled={str(value).lower()}: must be {str(not value).lower()} with "
        f"objective.name={settings.name}, which is named for it; start from objective.name={named}"
    )


def _check_grpo_d(kl: KlConfig, steps: int) -> None:
    if not kl.minimum >= 0:
        raise ValueError(f"objective.kl.minimum={kl.minimum}: must not be negative")
    if not kl.minimum <= kl.maximum:
        raise ValueError(f"objective.kl.minimum={kl.minimum}: must not exceed objective.kl.maximum={kl.maximum}")
    if not kl.maximum > 0:
        raise ValueError(
            f"objective.kl.maximum={kl.maximum}: must be above 0 with objective.kl.schedule=grpo_d; the published "
            "ranges are 0.04 to 0.1 and 0 to 0.02"
        )
    if not 0 <= kl.exploration_share <= 1:
        raise ValueError(
            f"objective.kl.exploration_share={kl.exploration_share}: must lie between 0 and 1, a share of run.steps"
        )
    if kl.exploration_share and kl.exploration_steps:
        raise ValueError(
            f"objective.kl.exploration_steps={kl.exploration_steps}: must be 0 with "
            f"objective.kl.exploration_share={kl.exploration_share}; say one of them"
        )
    if not 0 <= kl.exploration_steps <= steps:
        raise ValueError(
            f"objective.kl.exploration_steps={kl.exploration_steps}: must lie between 0 and run.steps={steps}; the "
            "published setting is 0.3 of the steps"
        )
