"""Texts that would do something if a page read them as more than text: it would call `alert`, fail or change."""

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<svg onload=alert(3)></svg>",
    "<iframe srcdoc='<script>parent.alert(4)</script>'></iframe>",
    "</textarea></td></table><b id=injected>bold</b>",
    "<style>body{display:none}</style>",
    "[click](javascript:alert(5)) ![](http://example.invalid/x.png)",
    "# Heading **bold** `code` $x^2$ | a | b |",
    "{{7*7}} ${7*7} {% raw %}",
    '"onmouseover="alert(6)',
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|> </s> [INST]",
    "\u202eright to left\u202c \u0000 \ud7ff",
]
