"""Named objectives: settings of one objective that ``objective.name`` picks and any other key overrides.

Plain values only: reading the settings imports this file without torch.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # APO, both parts (arXiv:2506.21655): KL k3 as a mean over sequences, policy loss as a mean over tokens.
    "apo": {
        "stcr": {"enabled": True},
        "dads": {"enabled": True},
        "kl": {"estimator": "k3", "coefficient": 1e-3, "reduction": "sequence_mean"},
        "reduction": "token_mean",
    },
    # APO's ablations: one part switched off.
    "apo_dads_only": {
        "stcr": {"enabled": False},
        "dads": {"enabled": True},
        "kl": {"estimator": "k3", "coefficient": 1e-3, "reduction": "sequence_mean"},
        "reduction": "token_mean",
    },
    "apo_stcr_only": {
        "stcr": {"enabled": True},
        "dads": {"enabled": False},
        "kl": {"estimator": "k3", "coefficient": 1e-3, "reduction": "sequence_mean"},
        "reduction": "token_mean",
    },
    # Every number of the authors' published training code (View-R1), spelled out so that a change of a default cannot
    # move it; a token mean over two responses at a time, as their micro-batches have. What remains different: equal
    # rewards give exactly 0, and STCR is computed in float64.
    "view_r1_exact": {
        "advantage": {"baseline": "group", "scale": True, "unbiased": True, "epsilon": 1e-9},
        "stcr": {"enabled": True, "base": 1.00001, "only_negative": False},
        "dads": {"enabled": True, "curve": "one_minus_exp"},
        "kl": {
            "estimator": "k3",
            "schedule": "constant",
            "coefficient": 1e-3,
            "placement": "loss",
            "reduction": "sequence_mean",
        },
        "mismatch": {"correction": "none"},
        "importance": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "reduction": "microbatch_token_mean",
        "microbatch_sequences": 2,
        "overlong": {"policy": "train"},
        "drop_zero_variance": False,
        "old_logprobs": "trainer",
    },
    # GRPO (DeepSeekMath, arXiv:2402.03300, eq. 3 and section 4.2): both terms are means over sequences, KL k3 at 0.04.
    "grpo": {
        "advantage": {"epsilon": 1e-4},
        "kl": {"estimator": "k3", "coefficient": 0.04, "reduction": "sequence_mean"},
        "reduction": "sequence_mean",
    },
    # GRPO-D (OThink-MR1, arXiv:2503.16081, eq. 3), its visual-counting range; it explores for 0.3 of the steps.
    "grpo_d": {
        "advantage": {"epsilon": 1e-4},
        "kl": {
            "estimator": "k3",
            "schedule": "grpo_d",
            "minimum": 0.04,
            "maximum": 0.10,
            "exploration_share": 0.3,
            "reduction": "sequence_mean",
        },
        "reduction": "sequence_mean",
    },
    # Dr. GRPO (arXiv:2503.20783, section 3.2): no division by the standard deviation nor by a response's own length,
    # but by a constant, the longest possible response (sampling.max_tokens); no KL.
    "dr_grpo": {
        "advantage": {"scale": False},
        "kl": {"coefficient": 0.0},
        "reduction": "constant",
    },
    # DAPO (arXiv:2503.14476, eq. 8 and 13): a wider upper clip, token mean, no KL, groups without contrast dropped, the
    # soft overlong punishment over the last fifth (4,096 of 20,480 tokens) instead of masking cut responses. Its
    # dynamic sampling is complete with rollout.refill_rounds above 0.
    "dapo": {
        "drop_zero_variance": True,
        "overlong": {"policy": "punish", "buffer": 0.2, "weight": 1.0},
        "kl": {"coefficient": 0.0},
        "clip_low": 0.2,
        "clip_high": 0.28,
        "reduction": "token_mean",
    },
    # RLOO (arXiv:2402.14740, section 3.2): a whole response is one action, so its tokens' terms are summed; the
    # baseline is the mean of the other responses' rewards, and the KL to the reference is part of the reward. The
    # coefficient depends on the task: 0.05 is a starting point of this project.
    "rloo": {
        "advantage": {"baseline": "leave_one_out", "scale": False},
        "kl": {"estimator": "k1", "coefficient": 0.05, "placement": "reward"},
        "reduction": "sequence_sum",
    },
    # GSPO (arXiv:2507.18071, eq. 5 and section 5.1): the ratio of whole responses, clipped within 3e-4 and 4e-4 of 1;
    # no KL. The paper takes four updates from each rollout (training.updates_per_rollout=4).
    "gspo": {
        "advantage": {"epsilon": 1e-4},
        "kl": {"coefficient": 0.0},
        "importance": "sequence",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "reduction": "sequence_mean",
    },
    # Supervised training on demonstrations, the baseline of both papers: for the command ``sft``, which reads the
    # reduction alone.
    "sft": {
        "kl": {"coefficient": 0.0},
        "reduction": "token_mean",
    },
}
