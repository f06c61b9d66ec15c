"""The kinds of models that are tested.

A kind is a model_type of transformers. None of these names is needed to compress a model: they say
which kinds passed every check of docs/architectures.md.
"""

TESTED = """
    afmoe apertus arcee aria aria_text axk1 axk2 aya_vision bailing_hybrid bamba beam biogpt
    bitnet bloom codegen cohere cohere2 cohere2_moe cohere2_vision cosmos3_omni ctrl cwm
    deepseek_v2 deepseek_v3 deepseek_vl deepseek_vl_hybrid doge ernie4_5 ernie4_5_moe
    exaone4 exaone4_5 exaone_moe falcon falcon_mamba flex_olmo flint fuyu gemma gemma2
    gemma3 gemma3_text glm glm4 glm4_moe glm4_moe_lite glm4v glm_moe_dsa got_ocr2 gpt2
    gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_docling granite_swa
    granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hyperclovax idefics2 idefics3 inkling_text internlm3 internvl iquestcoder
    jais2 jamba janus kolibri1 kosmos-2.5 laguna lfm2 lfm2_vl lfm3 lfm3_vl lighton_ocr llama llama4
    llama4_text llava llava_next llava_next_video llava_onevision mamba mamba2 mellum mimo_v2_flash
    minicpm3 minicpm_ocr minicpmv4_6 minicpmv4_7 minimax minimax_m2 minimax_m3_vl
    minimax_m3_vl_text ministral ministral3 mistral mistral3 mistral4 mixtral modernbert-decoder
    moss_transcribe_diarize mpt muse_glimmer nanochat nemotron nemotron_h olmo olmo2 olmo3
    olmo_hybrid olmoe opt ovis2 paddleocr_vl persimmon phi phi3 phimoe qianfan_ocr qwen2
    qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
    qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe recurrent_gemma seed_oss smollm3 smolvlm
    solar_open stablelm starcoder2 unlimited_ocr vaultgemma video_llama_3
    video_llava vipllava xglm
""".split()  # noqa: SIM905 (one name a line would hide the rest)
