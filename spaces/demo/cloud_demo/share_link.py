"""Links that carry what stands on the page. It is in the part after the `#`, which browsers do not send to any server."""

import json

import gradio as gr

from .markup import status


_SCRIPT = """
(...values) => {{
    const tab = {tab}, names = {names};
    const content = {{tab}};
    names.forEach((name, place) => {{ content[name] = values[place]; }});
    const bytes = new TextEncoder().encode(JSON.stringify(content));
    const packed = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    window.history.replaceState(null, "", "#" + packed);
    // Only pages from https or this machine have a clipboard
    if (!navigator.clipboard) return {in_address_bar};
    navigator.clipboard.writeText(window.location.href).catch(() => {{}});
    return {in_both};
}}
"""
_IN_ADDRESS_BAR = status("The address bar holds a link to these texts.")
_IN_BOTH = status("The address bar and the clipboard hold a link to these texts.")
_OPEN = """
(...values) => {{
    const tabs = {tabs};
    // A link that is opened where the page stands already changes nothing but the part after the #
    window.onhashchange = () => window.location.reload();
    // What the link does not hold stays as it is: somebody may have begun to type
    const updates = values.map(() => ({{__type__: "update"}}));
    let content;
    try {{
        const bytes = Uint8Array.from(atob(window.location.hash.slice(1)), (sign) => sign.charCodeAt(0));
        content = JSON.parse(new TextDecoder().decode(bytes));
    }} catch {{
        return updates;
    }}
    if (!content || typeof content !== "object" || !(content.tab in tabs)) return updates;
    const [place, names] = tabs[content.tab];
    updates[0].selected = content.tab;
    names.forEach((name, index) => {{
        if (typeof content[name] === "string") updates[place + index].value = content[name];
    }});
    return updates;
}}
"""


def share_button(tab: str, texts: dict[str, gr.Textbox], said: gr.HTML):
    """A button that makes a link to the texts of a tab; `said` shows that it did."""
    button = gr.Button("Link to this", size="sm", variant="secondary", elem_classes="narrow")
    script = _SCRIPT.format(
        tab=json.dumps(tab),
        names=json.dumps(list(texts)),
        in_address_bar=json.dumps(_IN_ADDRESS_BAR),
        in_both=json.dumps(_IN_BOTH),
    )
    button.click(None, list(texts.values()), said, js=script, api_visibility="private")


def open_links(page: gr.Blocks, tabs: gr.Tabs, texts_of_tabs: dict[str, dict[str, gr.Textbox]]):
    """Fill in what the address holds when the page is opened."""
    boxes, places = [], {}
    for tab, texts in texts_of_tabs.items():
        places[tab] = (1 + len(boxes), list(texts))
        boxes += texts.values()
    script = _OPEN.format(tabs=json.dumps(places))
    page.load(None, [tabs, *boxes], [tabs, *boxes], js=script, api_visibility="private")
