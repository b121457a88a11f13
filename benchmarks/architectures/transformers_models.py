"""Architectures of Hugging Face transformers in small: two layers each, random weights, offline.

Every configuration differs from the next in something that matters to pruning: how heads are cut
and repeated, where positions come in, what is shared, which sizes the forward reads from where.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from architectures.architecture import Architecture
from architectures.torchvision_import import import_torchvision

VOCABULARY = 67


def _ids(length: int = 9, name: str = "input_ids") -> Callable[[], dict[str, Tensor]]:
    """Return a maker of token numbers, none of them a special one."""
    return lambda: {name: 5 + torch.arange(2 * length).reshape(2, length) % (VOCABULARY - 5)}


def _masked(length: int = 9) -> Callable[[], dict[str, Tensor]]:
    """Return a maker of token numbers and a mask that leaves out the end of the first text."""

    def make() -> dict[str, Tensor]:
        mask = torch.ones(2, length, dtype=torch.int64)
        mask[0, -2:] = 0
        return {**_ids(length)(), "attention_mask": mask}

    return make


def _pairs() -> dict[str, Tensor]:
    """Make texts for an encoder and a decoder."""
    return {**_ids(9)(), **_ids(5, "decoder_input_ids")()}


def _normal(name: str, *shape: int) -> Callable[[], dict[str, Tensor]]:
    def make() -> dict[str, Tensor]:
        return {name: torch.randn(*shape, generator=torch.Generator().manual_seed(1))}

    return make


def _picture(size: int = 32) -> Callable[[], dict[str, Tensor]]:
    return _normal("pixel_values", 2, 3, size, size)


def _picture_and_text(size: int = 32) -> dict[str, Tensor]:
    return {**_picture(size)(), **_ids(9)()}


def _model(
    model: str,
    config: str,
    *,
    parts: dict[str, tuple[str, dict[str, Any]]] | None = None,
    **options: Any,
) -> Callable[[], nn.Module]:
    """Return a maker of a model by the names of its class and that of its configuration.

    Args:
        model: Name of a model class of transformers.
        config: Name of its configuration class.
        parts: Configurations inside the configuration: class and options by field.
        **options: Fields of the configuration.
    """

    def make() -> nn.Module:
        if importlib.util.find_spec("torchvision") is not None:
            import_torchvision()  # which transformers imports as well, as it is
        transformers = importlib.import_module("transformers")
        inner = {
            field: getattr(transformers, kind)(**fields)
            for field, (kind, fields) in (parts or {}).items()
        }
        made: nn.Module = getattr(transformers, model)(
            getattr(transformers, config)(**inner, **options)
        )
        return made

    return make


_BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
}
_LLAMA: dict[str, Any] = {**_BERT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_QWEN = {**_LLAMA, "head_dim": 12}
_VIT: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
}
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
    "max_position_embeddings": 40,
}
_SPEECH: dict[str, Any] = {
    **_BERT,
    "conv_dim": (24, 24),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
_CLIP_TEXT = {**_BERT, "eos_token_id": 6}
_DETR: dict[str, Any] = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "num_queries": 7,
}
_RESNET = (
    "ResNetConfig",
    {
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 40],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"],
    },
)
_RESNET_PYRAMID = (
    "ResNetConfig",
    {**_RESNET[1], "out_features": ["stage2", "stage3", "stage4"]},
)
_SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}

_TEXT = {
    "bert": (
        _model("BertForSequenceClassification", "BertConfig", **_BERT, num_labels=3), _masked(),
    ),
    "bert_masked_lm": (_model("BertForMaskedLM", "BertConfig", **_BERT), _ids()),
    "roberta": (
        _model("RobertaForTokenClassification", "RobertaConfig", **_BERT, num_labels=3),
        _masked(),
    ),
    "distilbert": (
        _model(
            "DistilBertForQuestionAnswering", "DistilBertConfig", vocab_size=VOCABULARY, dim=48,
            n_layers=2, n_heads=4, hidden_dim=80, max_position_embeddings=40,
        ),
        _ids(),
    ),
    "albert": (
        _model("AlbertForMaskedLM", "AlbertConfig", **_BERT, embedding_size=24), _ids(),
    ),
    "electra": (
        _model("ElectraForPreTraining", "ElectraConfig", **_BERT, embedding_size=24), _ids(),
    ),
    "deberta_v2": (
        _model(
            "DebertaV2ForSequenceClassification", "DebertaV2Config", **_BERT, num_labels=3,
            relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
            share_att_key=True, norm_rel_ebd="layer_norm", conv_kernel_size=3,
        ),
        _masked(),
    ),
    "longformer": (
        _model(
            "LongformerForSequenceClassification", "LongformerConfig",
            **{**_BERT, "intermediate_size": 192}, num_labels=3, attention_window=4, pad_token_id=1,
        ),
        _ids(8),
    ),
    "gpt2": (
        _model(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4,
            n_positions=40,
        ),
        _ids(),
    ),
    "gpt_neox": (_model("GPTNeoXForCausalLM", "GPTNeoXConfig", **_BERT), _ids()),
    "gptj": (
        _model(
            "GPTJForCausalLM", "GPTJConfig", vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4,
            n_positions=40, rotary_dim=8,
        ),
        _ids(),
    ),
    "opt": (
        _model(
            "OPTForCausalLM", "OPTConfig", vocab_size=VOCABULARY, hidden_size=48,
            num_hidden_layers=2, num_attention_heads=4, ffn_dim=80, max_position_embeddings=40,
            word_embed_proj_dim=24,
        ),
        _ids(),
    ),
    "bloom": (
        _model(
            "BloomForCausalLM", "BloomConfig", vocab_size=VOCABULARY, hidden_size=48, n_layer=2,
            n_head=4,
        ),
        _ids(),
    ),
    "llama": (_model("LlamaForCausalLM", "LlamaConfig", **_LLAMA), _ids()),
    "llama_tied": (
        _model(
            "LlamaForCausalLM", "LlamaConfig", **_LLAMA, tie_word_embeddings=True,
            attn_implementation="eager",
        ),
        _masked(),
    ),
    "mistral": (
        _model("MistralForSequenceClassification", "MistralConfig", **_LLAMA, num_labels=3,
               pad_token_id=0),
        _ids(),
    ),
    "qwen2": (_model("Qwen2ForCausalLM", "Qwen2Config", **_LLAMA), _ids()),
    "qwen3": (_model("Qwen3ForCausalLM", "Qwen3Config", **_QWEN), _ids()),
    "gemma": (_model("GemmaForCausalLM", "GemmaConfig", **_QWEN), _ids()),
    "gemma2": (_model("Gemma2ForCausalLM", "Gemma2Config", **_QWEN), _ids()),
    "phi3": (_model("Phi3ForCausalLM", "Phi3Config", **_LLAMA, pad_token_id=0), _ids()),
    "falcon": (
        _model(
            "FalconForCausalLM", "FalconConfig", vocab_size=VOCABULARY, hidden_size=48,
            num_hidden_layers=2, num_attention_heads=4, multi_query=True,
        ),
        _ids(),
    ),
    "mixtral": (
        _model(
            "MixtralForCausalLM", "MixtralConfig", **_LLAMA, num_local_experts=4,
            experts_implementation="eager",
        ),
        _ids(),
    ),
    "qwen3_moe": (
        _model(
            "Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_QWEN, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=96, experts_implementation="batched_mm",
        ),
        _ids(),
    ),
    "t5": (
        _model(
            "T5ForConditionalGeneration", "T5Config", vocab_size=VOCABULARY, d_model=48, d_kv=12,
            d_ff=192, num_layers=2, num_heads=4, decoder_start_token_id=0,
        ),
        _pairs,
    ),
    "bart": (_model("BartForConditionalGeneration", "BartConfig", **_BART), _pairs),
    "mbart": (_model("MBartForConditionalGeneration", "MBartConfig", **_BART), _pairs),
    "pegasus": (_model("PegasusForConditionalGeneration", "PegasusConfig", **_BART), _pairs),
    "mamba": (
        _model(
            "MambaForCausalLM", "MambaConfig", vocab_size=VOCABULARY, hidden_size=32, state_size=4,
            num_hidden_layers=2, use_mambapy=False,
        ),
        _ids(),
    ),
    "rwkv": (
        _model(
            "RwkvForCausalLM", "RwkvConfig", vocab_size=VOCABULARY, hidden_size=32,
            num_hidden_layers=2, context_length=16, use_cache=False,
        ),
        _ids(),
    ),
    "perceiver": (
        _model(
            "PerceiverForMaskedLM", "PerceiverConfig", vocab_size=VOCABULARY, d_model=32,
            num_latents=6, d_latents=40, num_blocks=1, num_self_attends_per_block=2,
            num_self_attention_heads=4, num_cross_attention_heads=4, qk_channels=32,
            v_channels=40, max_position_embeddings=9,
        ),
        lambda: {"inputs": _ids()()["input_ids"]},
    ),
}  # fmt: skip

_SOUND = {
    "whisper": (
        _model(
            "WhisperForConditionalGeneration", "WhisperConfig", **{**_BART, "num_mel_bins": 8},
            max_source_positions=16, max_target_positions=16, pad_token_id=0,
            decoder_start_token_id=1,
        ),
        lambda: {
            **_normal("input_features", 2, 8, 32)(), **_ids(5, "decoder_input_ids")(),
        },
    ),
    "wav2vec2": (
        _model("Wav2Vec2ForCTC", "Wav2Vec2Config", **_SPEECH), _normal("input_values", 2, 400),
    ),
    "hubert": (
        _model(
            "HubertForSequenceClassification", "HubertConfig", **_SPEECH,
            feat_extract_norm="layer", do_stable_layer_norm=True, classifier_proj_size=24,
            num_labels=3,
        ),
        _normal("input_values", 2, 400),
    ),
    "patchtst": (
        _model(
            "PatchTSTForPrediction", "PatchTSTConfig", num_input_channels=3, context_length=16,
            patch_length=4, patch_stride=4, d_model=32, num_hidden_layers=2,
            num_attention_heads=4, ffn_dim=48, prediction_length=4,
        ),
        _normal("past_values", 2, 16, 3),
    ),
}  # fmt: skip

_VISION = {
    "vit": (_model("ViTForImageClassification", "ViTConfig", **_VIT, num_labels=3), _picture()),
    "deit": (
        _model("DeiTForImageClassificationWithTeacher", "DeiTConfig", **_VIT, num_labels=3),
        _picture(),
    ),
    "beit": (
        _model(
            "BeitForImageClassification", "BeitConfig", **_VIT, num_labels=3,
            use_relative_position_bias=True, layer_scale_init_value=0.1,
        ),
        _picture(),
    ),
    "swin": (
        _model("SwinForImageClassification", "SwinConfig", **_SWIN, num_labels=3), _picture(64),
    ),
    "swinv2": (
        _model("Swinv2ForImageClassification", "Swinv2Config", **_SWIN, num_labels=3),
        _picture(64),
    ),
    "convnext": (
        _model(
            "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[16, 24, 32, 40],
            depths=[1, 1, 1, 1], num_labels=3,
        ),
        _picture(64),
    ),
    "segformer": (
        _model(
            "SegformerForSemanticSegmentation", "SegformerConfig", depths=[1, 1, 1, 1],
            hidden_sizes=[16, 24, 32, 40], num_attention_heads=[1, 2, 4, 4],
            decoder_hidden_size=32, num_labels=3,
        ),
        _picture(64),
    ),
    "dpt": (
        _model(
            "DPTForSemanticSegmentation", "DPTConfig", **{**_VIT, "num_hidden_layers": 4},
            backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 24, 32, 40],
            fusion_hidden_size=24, num_labels=3,
        ),
        _picture(),
    ),
    "yolos": (
        _model(
            "YolosForObjectDetection", "YolosConfig", **{**_VIT, "image_size": [32, 32]},
            num_detection_tokens=5, num_labels=3,
        ),
        _picture(),
    ),
    "detr": (
        _model(
            "DetrForObjectDetection", "DetrConfig", **_DETR, num_labels=3, use_timm_backbone=False,
            use_pretrained_backbone=False, backbone=None, parts={"backbone_config": _RESNET},
        ),
        _picture(64),
    ),
    "deformable_detr": (
        _model(
            "DeformableDetrForObjectDetection", "DeformableDetrConfig",
            **{**_DETR, "d_model": 64}, num_labels=3,
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
            num_feature_levels=3, parts={"backbone_config": _RESNET_PYRAMID},
        ),
        _picture(64),
    ),
    "rt_detr": (
        _model(
            "RTDetrForObjectDetection", "RTDetrConfig", d_model=48, encoder_hidden_dim=48,
            encoder_in_channels=[24, 32, 40], decoder_in_channels=[48, 48, 48],
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=80,
            decoder_ffn_dim=80, decoder_layers=2, num_queries=7, num_denoising=0, num_labels=3,
            parts={
                "backbone_config": (
                    "RTDetrResNetConfig",
                    {**_RESNET[1], "out_features": ["stage2", "stage3", "stage4"]},
                )
            },
        ),
        _picture(64),
    ),
    "maskformer": (
        _model(
            "MaskFormerForInstanceSegmentation", "MaskFormerConfig", fpn_feature_size=32,
            mask_feature_size=32, num_labels=3,
            parts={
                "backbone_config": ("SwinConfig", {**_SWIN, "depths": [1, 1, 1, 1],
                                    "num_heads": [2, 4, 4, 4], "window_size": 2}),
                "decoder_config": ("DetrConfig", _DETR),
            },
        ),
        _picture(64),
    ),
    "mask2former": (
        _model(
            "Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", feature_size=32,
            mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=48, encoder_layers=2,
            decoder_layers=2, num_attention_heads=4, dim_feedforward=48, num_queries=7,
            num_labels=3,
            parts={
                "backbone_config": ("SwinConfig", {**_SWIN, "depths": [1, 1, 1, 1],
                                    "num_heads": [2, 4, 4, 4], "window_size": 2,
                                    "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
            },
        ),
        _picture(64),
    ),
    "efficientnet": (
        _model(
            "EfficientNetForImageClassification", "EfficientNetConfig", width_coefficient=0.25,
            depth_coefficient=0.2, hidden_dim=320, image_size=64, num_labels=3,
        ),
        _picture(64),
    ),
}  # fmt: skip

_SEVERAL_SENSES = {
    "clip": (
        _model(
            "CLIPModel", "CLIPConfig", text_config=_CLIP_TEXT, vision_config=_VIT,
            projection_dim=24,
        ),
        _picture_and_text,
    ),
    "siglip": (
        _model("SiglipModel", "SiglipConfig", text_config=_BERT, vision_config=_VIT),
        _picture_and_text,
    ),
    "blip": (
        _model(
            "BlipForConditionalGeneration", "BlipConfig",
            text_config={**_BERT, "encoder_hidden_size": 48}, vision_config=_VIT,
            projection_dim=24,
        ),
        _picture_and_text,
    ),
}  # fmt: skip

TRANSFORMERS_MODELS = tuple(
    Architecture(f"transformers/{name}", make, inputs)
    for name, (make, inputs) in {**_TEXT, **_SOUND, **_VISION, **_SEVERAL_SENSES}.items()
)
