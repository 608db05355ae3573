"""Qwen2.5-VL as a Megatron-Core model: vision tower on the first pipeline stage, GPTModel across all of them.

Shape suffixes: T packed tokens, K image tokens, L patches, C values per patch, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from model_providers.qwen_vl.image_inputs import check_image_inputs
from model_providers.qwen_vl.layers import block_spec
from model_providers.qwen_vl.layout import Layout, check_chunk, check_group_sizes, check_layout
from model_providers.qwen_vl.megatron_config import BuildSettings, language_config, vision_config
from model_providers.qwen_vl.rotary import MultimodalAngles
from model_providers.qwen_vl.shape import QwenVLShape
from model_providers.qwen_vl.vision import VisionModel
from model_providers.qwen_vl.weight_map import weight_map


class LanguageModel(GPTModel):
    """GPTModel whose last stage can hand out the final hidden states instead of [T, V] logits."""

    emit_hidden = False

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.post_process and self.emit_hidden:
            return hidden_states
        return super()._postprocess(hidden_states, *args, **kwargs)


def padded_vocab(vocab: int, tensor: int) -> int:
    """Vocabulary rows, rounded up so that ``tensor`` ranks hold equally many."""
    return -(-vocab // tensor) * tensor


def check_groups(
    shape: QwenVLShape,
    settings: BuildSettings,
    groups: ProcessGroupCollection,
    vp_stage: int | None,
    *,
    pre_process: bool,
    post_process: bool,
) -> None:
    """ValueError when ``groups`` are not those of ``settings``, the model cannot be cut so, or the chunk is not here.

    A collection without data-parallel ranks (``dp``) counts as one replica.
    """
    missing = [name for name in ("tp", "pp", "cp") if not hasattr(groups, name)]
    if missing:
        raise ValueError(f"pg_collection: has no {', '.join(missing)}; make it with the groups tp, pp and cp")
    tensor, pipeline, context = groups.tp.size(), groups.pp.size(), groups.cp.size()
    data = groups.dp.size() if hasattr(groups, "dp") else 1
    layout = Layout(
        world=tensor * pipeline * context * data,
        tensor=settings.tensor,
        sequence=settings.sequence_parallel,
        pipeline=settings.pipeline,
        virtual_pipeline=settings.virtual_pipeline,
        first_stage_layers=settings.first_stage_layers,
        context=settings.context,
        vision_ffn_multiple=settings.vision_ffn_multiple,
    )
    check_group_sizes(layout, tensor=tensor, pipeline=pipeline, context=context)
    check_layout(layout, shape.divided)
    check_chunk(
        layout,
        pipeline_rank=groups.pp.rank(),
        vp_stage=vp_stage,
        pre_process=pre_process,
        post_process=post_process,
    )


class QwenVLModel(MegatronModule):
    """One pipeline stage of a Qwen2.5-VL, or one chunk of it where stages are interleaved.

    Its constructor raises ValueError for settings that are not those of the process groups, for a layout that this
    shape cannot be cut by, and for a chunk that is not this rank's.
    """

    def __init__(
        self,
        shape: QwenVLShape,
        settings: BuildSettings,
        *,
        pg_collection: ProcessGroupCollection,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ) -> None:
        check_groups(shape, settings, pg_collection, vp_stage, pre_process=pre_process, post_process=post_process)
        vp_stage = vp_stage if settings.virtual_pipeline > 1 else None
        config: TransformerConfig = language_config(shape, settings)
        super().__init__(config=config)
        self.shape = shape
        self.settings = settings
        self.model_type = ModelType.encoder_or_decoder  # what Megatron's schedules ask for
        self.pre_process = pre_process
        self.post_process = post_process
        self.vp_stage = vp_stage
        self.pg_collection = pg_collection
        self.share_embeddings_and_output_weights = shape.tied
        self.vision_model = (
            VisionModel(vision_config(shape, settings), shape.vision, settings.layer_spec, pg_collection)
            if pre_process
            else None
        )
        layers = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=pg_collection.pp.rank())
        self.language_model = LanguageModel(
            config=config,
            transformer_layer_spec=block_spec(settings.layer_spec, AttnMaskType.causal, layers),
            vocab_size=padded_vocab(shape.vocab, settings.tensor),
            max_sequence_length=shape.max_positions,
            pre_process=pre_process,
            post_process=post_process,
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="mrope",
            rotary_base=shape.rope_theta,
            scatter_embedding_sequence_parallel=False,  # scattered below, once the image features are in
            pg_collection=pg_collection,
            vp_stage=vp_stage,
        )

        self.language_model.rotary_pos_emb = MultimodalAngles(shape.head_size, shape.rope_theta)
        self._mark_tensor_parallel_parameters()

    def _mark_tensor_parallel_parameters(self) -> None:
        """Tells Megatron which parameters are cut over tensor ranks, as its initialisation would.

        Unmarked ones count as copies: the gradient norm, and so the clipping, would then leave out every rank's part
        but the first.
        """
        rows = {
            row.megatron: row
            for row in weight_map(self.shape, transformer_engine=self.settings.layer_spec == "transformer_engine")
        }
        for name, parameter in self.named_parameters():  # cuts are the same in every layer: local numbers will do
            cut = rows[name].cut
            if cut is not None and not getattr(parameter, "tensor_model_parallel", False):
                # Transformer Engine's wrappers set some of the three; Megatron's setter asserts that none is set.
                for attribute, value in (
                    ("tensor_model_parallel", True),
                    ("partition_dim", cut),
                    ("partition_stride", getattr(parameter, "partition_stride", 1)),
                ):
                    setattr(parameter, attribute, value)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Called by Megatron's pipeline schedule with what the stage before sent."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> torch.Tensor | None:
        """The tied weight, as Megatron's gradient finalisation asks for it."""
        return self.language_model.shared_embedding_or_output_weight()

    def output_weight(self) -> torch.Tensor:
        """This rank's rows of the output projection [V / tensor, H]; last stage only."""
        if self.share_embeddings_and_output_weights:
            weight = self.language_model.shared_embedding_or_output_weight()
        else:
            weight = self.language_model.output_layer.weight
        assert weight is not None, "only the last pipeline stage has an output projection"
        return weight

    def _embed(
        self,
        input_ids: torch.Tensor,
        pixel_values_LC: torch.Tensor | None,
        image_grids: Sequence[tuple[int, int, int]],
        image_positions_K: torch.Tensor | None,
        image_features_K: torch.Tensor | None,
    ) -> torch.Tensor:
        check_image_inputs(
            self.shape.vision,
            input_ids.shape[1],
            pixel_values_LC,
            image_grids,
            image_positions_K,
            image_features_K,
            context=self.settings.context,
        )
        embedded = self.language_model.embedding(input_ids=input_ids, position_ids=None)
        if image_positions_K is not None and image_features_K is not None and image_positions_K.numel():
            assert self.vision_model is not None and pixel_values_LC is not None  # the check above
            features = self.vision_model(pixel_values_LC, image_grids)
            rows = features.index_select(0, image_features_K).unsqueeze(1)
            embedded = embedded.index_copy(0, image_positions_K, rows.to(embedded.dtype))
        if self.config.sequence_parallel:
            embedded = tensor_parallel.scatter_to_sequence_parallel_region(embedded, group=self.pg_collection.tp)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        packed_seq_params: PackedSeqParams,
        *,
        pixel_values_LC: torch.Tensor | None = None,
        image_grids: Sequence[tuple[int, int, int]] = (),
        image_positions_K: torch.Tensor | None = None,
        image_features_K: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output: Literal["hidden", "logits"] = "logits",
    ) -> torch.Tensor:
        """Runs this stage on one packed microbatch.

        Under context parallelism T counts this rank's tokens, ``context.context_rows`` of the packed sequences.

        Args:
            input_ids: int64 [1, T].
            position_ids: int64 [3, 1, T], see ``mrope.mrope_position_ids``.
            packed_seq_params: ``layers.packed_layout(cu_seqlens, max_seqlen)``, of the whole sequences.
            pixel_values_LC: patches of the distinct images, in the image processor's order; None without images.
            image_grids: (time, height, width) in patches of each of those images.
            image_positions_K: int64, rows of the packed sequence that hold an image token.
            image_features_K: int64, for each of them the row of the merged vision features it shows.
            labels: int64 [1, T]; then the last stage returns Megatron's per-token loss [1, T].
            output: what the last stage returns without labels.

        Returns:
            Stages before the last: hidden states [T, 1, H] (T / tensor under sequence parallelism). Last stage:
            "hidden" the same after the final norm, gathered to all T; "logits" [1, T, V / tensor].

        Raises:
            ValueError: on the first stage, for images that do not match each other: see ``image_inputs``.
        """
        decoder_input = None
        if self.pre_process:
            decoder_input = self._embed(input_ids, pixel_values_LC, image_grids, image_positions_K, image_features_K)
        self.language_model.emit_hidden = output == "hidden" and labels is None
        out = self.language_model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            decoder_input=decoder_input,
            labels=labels,
            packed_seq_params=packed_seq_params,
        )
        if self.post_process and self.language_model.emit_hidden and self.config.sequence_parallel:
            # The head's own backward sums over tensor ranks, so each rank's gradient is whole: split it, no sum.
            out = tensor_parallel.gather_from_sequence_parallel_region(
                out, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return out
