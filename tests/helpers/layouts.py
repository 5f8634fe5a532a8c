"""What the files of published checkpoints say, small: keys, ids, classes, templates; sizes alone are other ones.

It was read in copies of the files of the hub; `data/configs/README.md` names these. Words of tokenizers and chat templates are
our own; which tags and features templates use is not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
SCALED = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
          "rescale_factor": 0.00392156862745098}  # fmt: skip
TEXT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
)  # of every language model here
TOWER = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)
QWEN_TOWER = dict(depth=3, num_heads=2, intermediate_size=64)


class Published(NamedTuple):
    """One checkpoint.

    Attributes:
        config: what `config.json` says, with small sizes.
        files: what other JSON files say.
        template: the chat template, and the name of the file that it is in.
        special: ids of the special tokens.
        tokenizer: what `tokenizer_config.json` says besides.
        weights: beginnings of the names of weights.
        dtype: of the weights.
    """

    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    template: tuple[str, str]
    special: dict[str, int]
    tokenizer: dict[str, Any]
    weights: tuple[str, ...]
    dtype: torch.dtype


# ---------------------------------------------------------------------------------------------- the LLaVAs
IMAGES_FIRST = (
    "{% for message in messages %}@BEGIN@{# pictures first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>@AFTER@' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>@AFTER@' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] }}{% endgeneration %}{% endfor %}{% endif %}@END@{% endfor %}"
    "{% if add_generation_prompt %}{{ '@ANSWER@' }}{% endif %}"
)


def _template(begin: str, after: str, end: str, answer: str) -> str:
    marks = {"@BEGIN@": begin, "@AFTER@": after, "@END@": end, "@ANSWER@": answer}
    out = IMAGES_FIRST
    for mark, text in marks.items():
        out = out.replace(mark, text)
    return out


CHATML = _template(
    "{{ '<|im_start|>' + message['role'] + ' ' }}", "\\n", "{{ '<|im_end|>' }}", "<|im_start|>assistant\\n"
)
TEXT_ONLY = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAVA_NAMES = ("language_model.lm_head", "language_model.model", "multi_modal_projector", "vision_tower.vision_model")
CLIP = {
    "image_size": 336, "model_type": "clip_vision_model", "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    **TOWER,
}  # fmt: skip
CLIP_PICTURES = {
    "crop_size": {"height": 336, "width": 336}, "do_center_crop": True, **SCALED, "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD, "size": {"shortest_edge": 336},
}  # fmt: skip
LLAMA_TOKENIZER = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "legacy": False,
    "model_max_length": 1000000000000000019884624838656, "pad_token": "<pad>", "padding_side": "left",
    "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer", "trust_remote_code": False, "unk_token": "<unk>",
    "use_default_system_prompt": False,
}  # fmt: skip

LLAVA = Published(
    config={
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
        "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16",
            "vocab_size": 32064, **TEXT,
        },
        "torch_dtype": "float16", "transformers_version": "4.36.0.dev0", "vision_config": CLIP,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
    },
    files={
        "added_tokens.json": {"<image>": 32000, "<pad>": 32001},
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001,
            "transformers_version": "4.36.0.dev0",
        },
        "preprocessor_config.json": {
            **CLIP_PICTURES, "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
        },
        "processor_config.json": {
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
            "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
        },
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    },
    template=("chat_template.json", _template("{{ message['role'] | upper + ': ' }}", "\\n", "{{ ' ' }}", "ASSISTANT:")),
    special={"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001},
    tokenizer={**LLAMA_TOKENIZER, "extra_special_tokens": {"image_token": "<image>"}, "image_token": "<image>",
               "processor_class": "LlavaProcessor"},
    weights=LLAVA_NAMES,
    dtype=torch.float16,
)  # fmt: skip

NEXT_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
NEXT = Published(
    config={
        "architectures": ["LlavaNextForConditionalGeneration"], "ignore_index": -100, "image_grid_pinpoints": NEXT_GRID,
        "image_token_index": 64000, "model_type": "llava_next", "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "NousResearch/Nous-Hermes-2-Yi-34B", "architectures": ["LlamaForCausalLM"],
            "eos_token_id": 7, "max_position_embeddings": 4096, "model_type": "llama", "pad_token_id": 0,
            "rms_norm_eps": 1e-05, "rope_theta": 5000000.0, "torch_dtype": "bfloat16", "use_cache": False,
            "vocab_size": 64064, **TEXT,
        },
        "torch_dtype": "float16", "transformers_version": "4.39.0.dev0", "use_image_newline_parameter": True,
        "vision_config": CLIP, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    },
    files={
        "added_tokens.json": {"<image>": 64000, "<pad>": 64001},
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0, "use_cache": False,
            "transformers_version": "4.39.0.dev0",
        },
        "preprocessor_config.json": {  # without do_pad
            "aspect_ratio_setting": "anyres", **CLIP_PICTURES, "image_grid_pinpoints": NEXT_GRID,
            "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor",
        },
        "processor_config.json": {
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
            "processor_class": "LlavaNextProcessor", "vision_feature_select_strategy": "default",
        },
    },
    template=("chat_template.json", CHATML),
    special={"<unk>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7,
             "<image>": 64000, "<pad>": 64001},
    tokenizer={**LLAMA_TOKENIZER, "add_bos_token": False, "bos_token": "<|startoftext|>", "eos_token": "<|im_end|>",
               "processor_class": "LlavaNextProcessor"},
    weights=(*LLAVA_NAMES, "image_newline"),
    dtype=torch.float16,
)  # fmt: skip

NEXT_VIDEO = Published(
    config={
        "architectures": ["LlavaNextVideoForConditionalGeneration"], "ignore_index": -100,
        "image_grid_pinpoints": NEXT_GRID, "image_token_index": 32001, "model_type": "llava_next_video",
        "projector_hidden_act": "gelu", "spatial_pool_mode": "average", "spatial_pool_out_channels": 1024,
        "spatial_pool_stride": 2,
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 2.5, "type": "linear"}, "torch_dtype": "float16", "vocab_size": 32064, **TEXT,
        },
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0",
        "use_image_newline_parameter": True, "video_token_index": 32000, "vision_config": CLIP,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    },
    files={
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.42.0.dev0",
        },
        "preprocessor_config.json": {  # for pictures and frames
            **CLIP_PICTURES, "do_pad": True, "image_grid_pinpoints": NEXT_GRID,
            "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextVideoProcessor",
        },
        "processor_config.json": {
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
            "processor_class": "LlavaNextVideoProcessor", "vision_feature_select_strategy": "default",
            "video_token": "<video>",
        },
    },
    template=("chat_template.json", _template("{{ message['role'] | upper + ': ' }}", "\\n", "{{ ' ' }}", "ASSISTANT:")),
    special={"<unk>": 0, "<s>": 1, "</s>": 2, "<video>": 32000, "<image>": 32001, "<pad>": 32002},
    tokenizer={**LLAMA_TOKENIZER, "processor_class": "LlavaNextVideoProcessor"},
    weights=(*LLAVA_NAMES, "image_newline"),
    dtype=torch.bfloat16,
)  # fmt: skip

QWEN_TOKENIZER = {
    "add_prefix_space": False, "bos_token": None, "chat_template": TEXT_ONLY, "eos_token": "<|im_end|>",
    "errors": "replace", "model_max_length": 32768, "pad_token": "<|endoftext|>", "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
}  # fmt: skip
QWEN_SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}


def _numbered(first: int, tokens: str) -> dict[str, int]:
    return {token: first + number for number, token in enumerate(tokens.split())}


VISUAL_SPECIAL = QWEN_SPECIAL | _numbered(
    151646,
    "<|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> "
    "<|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>",
)
ONEVISION_GRID = [[384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)]
ONEVISION_PICTURES = {
    **SCALED,
    "do_pad": True,
    "image_mean": HALF,
    "image_std": HALF,
    "size": {"height": 384, "width": 384},
}

ONEVISION = Published(
    config={
        "_name_or_path": "/raid/somebody/ov-500", "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100, "image_grid_pinpoints": ONEVISION_GRID, "image_token_index": 151646,
        "model_type": "llava_onevision", "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "Qwen/Qwen2-0.5B-Instruct", "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643,
            "eos_token_id": 151645, "max_window_layers": 24, "model_type": "qwen2", "rope_theta": 1000000.0,
            "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 152000, **TEXT,
        },
        "tie_word_embeddings": False,  # of the language model alone it is true
        "torch_dtype": "float16", "transformers_version": "4.45.0.dev0", "use_image_newline_parameter": True,
        "video_token_index": 151647, "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            "image_size": 384, "model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False, **TOWER,
        },
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    },
    files={
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 151643, "eos_token_id": 151645,
            "transformers_version": "4.45.0.dev0",
        },
        "preprocessor_config.json": {
            **ONEVISION_PICTURES, "image_grid_pinpoints": ONEVISION_GRID,
            "image_processor_type": "LlavaOnevisionImageProcessor", "processor_class": "LlavaOnevisionProcessor",
        },
        "processor_config.json": {
            "image_token": "<image>", "num_image_tokens": 729, "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>", "vision_aspect_ratio": "anyres_max_9", "vision_feature_select_strategy": "full",
        },
        "video_preprocessor_config.json": {
            "crop_size": None, "default_to_square": False, "do_center_crop": None, **ONEVISION_PICTURES,
            "do_sample_frames": False, "fps": None, "num_frames": None, "processor_class": "LlavaOnevisionProcessor",
            "size_divisor": None, "video_metadata": None, "video_processor_type": "LlavaOnevisionVideoProcessor",
        },
    },
    template=("chat_template.json", CHATML),
    special={**QWEN_SPECIAL, "<image>": 151646, "<video>": 151647},
    tokenizer={**QWEN_TOKENIZER, "padding_side": "right", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
               "processor_class": "LlavaOnevisionProcessor"},
    weights=("image_newline", *LLAVA_NAMES[1:]),  # tied: there is no lm_head
    dtype=torch.float16,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------- InternVL
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
INTERNVL = Published(
    config={
        "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5, "image_seq_length": 256,
        "image_token_id": 151667, "model_type": "internvl", "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
            "eos_token_id": 151645, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 32768,
            "max_window_layers": 70, "model_type": "qwen2", "rms_norm_eps": 1e-06,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "rope_theta": 1000000.0,
            "sliding_window": None, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
            "vocab_size": 151674, **TEXT,  # the token <video> is the first that it does not have
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.52.0.dev0",
        "vision_config": {
            "architectures": ["InternVisionModel"], "attention_bias": True, "attention_dropout": 0.0, "dropout": 0.0,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "image_size": [448, 448], "initializer_factor": 0.1,
            "initializer_range": 1e-10, "layer_norm_eps": 1e-06, "layer_scale_init_value": 0.1,
            "model_type": "internvl_vision", "norm_type": "layer_norm", "num_channels": 3, "patch_size": [14, 14],
            "projection_dropout": 0.0, "torch_dtype": "bfloat16", "use_absolute_position_embeddings": True,
            "use_mask_token": False, "use_mean_pooling": True, "use_qk_norm": False, **TOWER,
        },
        "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
    },
    files={
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 151643, "eos_token_id": 151645,
            "transformers_version": "4.52.0.dev0",
        },
        "preprocessor_config.json": {
            "crop_size": None, "crop_to_patches": False, "data_format": "channels_first", "default_to_square": True,
            "device": None, "do_center_crop": None, **SCALED, "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "GotOcr2ImageProcessorFast", "image_std": [0.229, 0.224, 0.225],
            "input_data_format": None, "max_patches": 12, "min_patches": 1, "processor_class": "InternVLProcessor",
            "return_tensors": None, "size": {"height": 448, "width": 448},
        },
        "processor_config.json": {"image_seq_length": 256, "processor_class": "InternVLProcessor"},
    },
    template=("chat_template.jinja", INTERNVL_TEMPLATE),
    special=VISUAL_SPECIAL | _numbered(
        151657,
        "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
        "<img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box> <video>",
    ),
    tokenizer={
        **{name: value for name, value in QWEN_TOKENIZER.items() if name != "chat_template"}, "add_bos_token": False,
        "context_image_token": "<IMG_CONTEXT>", "end_image_token": "</img>", "start_image_token": "<img>",
        "video_token": "<video>", "model_max_length": 8192, "processor_class": "InternVLProcessor",
        "extra_special_tokens": {
            "context_image_token": "<IMG_CONTEXT>", "end_image_token": "</img>", "start_image_token": "<img>",
            "video_token": "<video>",
        },
    },
    weights=("language_model.lm_head", "language_model.model", "multi_modal_projector", "vision_tower"),
    dtype=torch.bfloat16,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------- SmolVLM
SMOL_PICTURES = {
    "do_convert_rgb": True, "do_image_splitting": True, "do_normalize": True, "do_pad": True, "do_rescale": True,
    "do_resize": True, "image_mean": HALF, "image_std": HALF, "max_image_size": {"longest_edge": 126}, "resample": 1,
    "rescale_factor": 0.00392156862745098, "size": {"longest_edge": 252},
}  # fmt: skip
SMOL_NAMED = {
    "end_of_utterance_token": "<end_of_utterance>", "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>", "image_token": "<image>",
}  # fmt: skip
SMOLVLM = Published(
    config={
        "architectures": ["SmolVLMForConditionalGeneration"], "image_token_id": 49190, "model_type": "smolvlm",
        "pad_token_id": 128002, "scale_factor": 3,
        "text_config": {
            "_flash_attn_2_enabled": True, "_name_or_path": "None", "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 8, "max_position_embeddings": 8192, "model_type": "llama", "neftune_noise_alpha": 0.0,
            "pad_token_id": 2, "pixel_shuffle_factor": 3, "qk_layer_norms": False, "rms_norm_eps": 1e-05,
            "rope_theta": 130000, "torch_dtype": "bfloat16", "use_resampler": False, "vocab_size": 49280, **TEXT,
        },
        "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.47.1", "use_cache": False,
        "use_reentrant_checkpointing": False,
        "vision_config": {
            "image_size": 126, "max_image_size": {"longest_edge": 126}, "model_type": "smolvlm_vision",
            "patch_size": 14, "size": {"longest_edge": 630}, "tie_word_embeddings": False, "use_base_siglip": False,
            **TOWER,
        },
        "vocab_size": 49280,
    },
    files={
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 49279, "pad_token_id": 2,
            "transformers_version": "4.47.1",
        },
        "preprocessor_config.json": {
            **SMOL_PICTURES, "image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor",
            "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 126}},
        },
        "processor_config.json": {"image_seq_len": 9, "processor_class": "SmolVLMProcessor"},
    },
    template=("chat_template.json", (
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )),
    special={
        "<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<global-img>": 49152,
        **_numbered(49153, " ".join(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))),
        "<fake_token_around_image>": 49189, "<image>": 49190,
        **_numbered(49191, " ".join(f"<|reserved_special_token_{number}|>" for number in range(88))),
        "<end_of_utterance>": 49279,
    },
    tokenizer={
        "add_prefix_space": False, "bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "legacy": False,
        "model_max_length": 16384, "pad_token": "<|im_end|>", "processor_class": "SmolVLMProcessor",
        "tokenizer_class": "GPT2Tokenizer", "truncation_side": "left", "unk_token": "<|endoftext|>",
        "extra_special_tokens": SMOL_NAMED, **SMOL_NAMED,
    },
    weights=("lm_head", "model.connector", "model.text_model", "model.vision_model"),
    dtype=torch.float32,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------- the Qwens
COUNTED = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The language model's settings stand at the top, where its parts had no configuration of their own yet.
FLAT = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656,
    "hidden_act": "silu", "initializer_range": 0.02, "max_window_layers": 28, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "torch_dtype": "bfloat16", "transformers_version": "4.41.2",
    "use_cache": True, "use_sliding_window": False, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    **TEXT,
}  # fmt: skip
QWEN_PICTURES = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "Qwen2VLImageProcessor",
}  # fmt: skip
QWEN_NAMES = ("lm_head", "model", "visual")

QWEN2 = Published(
    config={
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **FLAT,
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "vocab_size": 152064,
        "vision_config": {
            "depth": 3, "embed_dim": 32, "mlp_ratio": 4, "num_heads": 2, "in_chans": 3, "hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
        },
    },
    files={
        "generation_config.json": {
            "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.0, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "transformers_version": "4.37.0",
        },
        "preprocessor_config.json": {**QWEN_PICTURES, "processor_class": "Qwen2VLProcessor"},
    },
    template=("chat_template.json", COUNTED),
    special=VISUAL_SPECIAL,
    tokenizer={**QWEN_TOKENIZER, "chat_template": COUNTED, "padding_side": "left"},
    weights=QWEN_NAMES,
    dtype=torch.bfloat16,
)  # fmt: skip

QWEN25 = Published(
    config={
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **FLAT,
        "max_position_embeddings": 128000, "tie_word_embeddings": False, "vocab_size": 152064,
        "vision_config": {
            "depth": 3, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "in_chans": 3,
            "out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    },
    files={
        "generation_config.json": {
            "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.05, "temperature": 0.000001, "transformers_version": "4.49.0",
        },
        "preprocessor_config.json": {**QWEN_PICTURES, "processor_class": "Qwen2_5_VLProcessor"},
    },
    template=("chat_template.json", COUNTED),
    special=VISUAL_SPECIAL,
    tokenizer={**QWEN_TOKENIZER, "chat_template": COUNTED, "model_max_length": 131072},
    weights=QWEN_NAMES,
    dtype=torch.bfloat16,
)  # fmt: skip

QWEN3_SIZES = {"longest_edge": 16777216, "shortest_edge": 65536}
QWEN3 = Published(
    config={
        "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
            "eos_token_id": 151645, "head_dim": 16, "hidden_act": "silu", "initializer_range": 0.02,
            "max_position_embeddings": 262144, "model_type": "qwen3_vl_text", "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
            "rope_theta": 5000000, "tie_word_embeddings": True, "use_cache": True, "vocab_size": 151936, **TEXT,
        },
        "tie_word_embeddings": True, "transformers_version": "4.57.0.dev0", "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": [0, 1], "depth": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 32,
            "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 64, "model_type": "qwen3_vl",
            "num_heads": 2, "num_position_embeddings": 2304, "out_hidden_size": 32, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653, "vision_start_token_id": 151652,
    },
    files={
        "generation_config.json": {
            "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
            "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.0, "temperature": 0.7, "transformers_version": "4.56.0",
        },
        "preprocessor_config.json": {
            "size": QWEN3_SIZES, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": HALF,
            "image_std": HALF, "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        "video_preprocessor_config.json": {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096}, "patch_size": 16, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": HALF, "image_std": HALF, "processor_class": "Qwen3VLProcessor",
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    },
    template=("chat_template.json", COUNTED),
    special=VISUAL_SPECIAL,
    tokenizer={**QWEN_TOKENIZER, "chat_template": COUNTED, "add_bos_token": False, "model_max_length": 262144},
    weights=("model.language_model", "model.visual"),
    dtype=torch.bfloat16,
)  # fmt: skip

QWEN3_MOE = QWEN3._replace(
    config={
        **QWEN3.config, "architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe",
        "text_config": {
            **QWEN3.config["text_config"], "decoder_sparse_step": 1, "mlp_only_layers": [],
            "model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 32, "norm_topk_prob": True, "num_experts": 4,
            "num_experts_per_tok": 2, "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
        "vision_config": {**QWEN3.config["vision_config"], "model_type": "qwen3_vl_moe"},
    },
    weights=("lm_head", "model.language_model", "model.visual"),
)  # fmt: skip

QWEN35_SPECIAL = {token: index + 96401 for token, index in VISUAL_SPECIAL.items()}
QWEN35 = QWEN3._replace(
    config={
        "architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248056, "model_type": "qwen3_5",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16",
            "eos_token_id": 248044, "full_attention_interval": 2, "head_dim": 32, "hidden_act": "silu",
            "initializer_range": 0.02, "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_value_head_dim": 8, "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262144, "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
            "rope_parameters": {
                "mrope_interleaved": True, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25,
                "rope_theta": 10000000, "rope_type": "default",
            },
            "use_cache": True, "vocab_size": 248320, **TEXT,
        },
        "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0", "video_token_id": 248057,
        "vision_config": {
            **{name: value for name, value in QWEN3.config["vision_config"].items() if name != "deepstack_visual_indexes"},
            "model_type": "qwen3_5",
        },
        "vision_end_token_id": 248054, "vision_start_token_id": 248053,
    },
    files={
        **QWEN3.files,
        "generation_config.json": {
            "bos_token_id": 248044, "do_sample": True, "eos_token_id": [248046, 248044], "pad_token_id": 248044,
            "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.57.0.dev0",
        },
    },
    special=QWEN35_SPECIAL,
    weights=("lm_head", "model.language_model", "model.visual"),
)  # fmt: skip

# ---------------------------------------------------------------------------------------------- GLM
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLM = Published(
    config={
        "architectures": ["Glm4vForConditionalGeneration"], "model_type": "glm4v", "image_start_token_id": 151339,
        "image_end_token_id": 151340, "video_start_token_id": 151341, "video_end_token_id": 151342,
        "image_token_id": 151343, "video_token_id": 151344, "tie_word_embeddings": False,
        "transformers_version": "4.57.1",
        "text_config": {
            "attention_bias": True, "attention_dropout": 0.0, "dtype": "bfloat16", "hidden_act": "silu",
            "eos_token_id": [151329, 151336, 151338], "initializer_range": 0.02, "max_position_embeddings": 65536,
            "model_type": "glm4v_text", "pad_token_id": 151329, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
            "rope_scaling": {"mrope_section": [1, 1, 0], "rope_type": "default"}, "rope_theta": 10000.0,
            "use_cache": True, "vocab_size": 151552, **TEXT,
        },
        "vision_config": {
            "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 32,
            "image_size": 336, "in_channels": 3, "initializer_range": 0.02, "model_type": "glm4v",
            "out_hidden_size": 32, "patch_size": 14, "rms_norm_eps": 1e-05, "spatial_merge_size": 2,
            "temporal_patch_size": 2, **QWEN_TOWER,
        },
    },
    files={
        "generation_config.json": {
            "_from_model_config": True, "do_sample": True, "eos_token_id": [151329, 151336, 151338],
            "pad_token_id": 151329, "top_p": 0.6, "temperature": 0.8, "top_k": 2, "transformers_version": "4.57.1",
        },
        "preprocessor_config.json": {
            "size": {"shortest_edge": 12544, "longest_edge": 9633792}, "do_rescale": True, "patch_size": 14,
            "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
            "image_processor_type": "Glm4vImageProcessor", "processor_class": "Glm4vProcessor",
        },
    },
    template=("chat_template.jinja", GLM_TEMPLATE),
    special=_numbered(
        151329,
        "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> "
        "<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|image|> <|video|>",
    ),
    tokenizer={
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 128000, "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "Glm4vProcessor",
    },
    weights=("lm_head", "model.language_model", "model.visual"),
    dtype=torch.bfloat16,
)  # fmt: skip

PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": LLAVA,
    "llava-hf/llava-v1.6-34b-hf": NEXT,
    "llava-hf/LLaVA-NeXT-Video-7B-hf": NEXT_VIDEO,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": ONEVISION,
    "OpenGVLab/InternVL3-8B-hf": INTERNVL,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": SMOLVLM,
    "Qwen/Qwen2-VL-7B-Instruct": QWEN2,
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN25,
    "Qwen/Qwen3-VL-4B-Instruct": QWEN3,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": QWEN3_MOE,
    "Qwen/Qwen3.5-9B": QWEN35,
    "zai-org/GLM-4.1V-9B-Thinking": GLM,
}
