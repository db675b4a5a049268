"""Tool calls in the format of the model's chat template: constrain and parse.

`compute/tool_call_format.py` detects the format, `compute/chat_template.py` prepares messages.

    grammar    the tools that may be called → a constraint on the answer
    parser     the text of the answer → text and calls

One call of `add` with `{"a": 1}`, and the detected format, for known chat templates:

    Qwen 2.5, Hermes
        <tool_call>⏎{"name": "add", "arguments": {"a": 1}}⏎</tool_call>
        ToolCallFormat("<tool_call>⏎", "⏎</tool_call>", "⏎</tool_call>⏎<tool_call>⏎")
    Llama 3.1
        {"name": "add", "parameters": {"a": 1}}
        ToolCallFormat("", "", None, "parameters")
    Mistral 7B v0.3
        [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]
        ToolCallFormat("[TOOL_CALLS] [", "]", ", ")
    without tool support: as Qwen 2.5, after a system prompt that describes the tools
        DEFAULT_FORMAT
"""
