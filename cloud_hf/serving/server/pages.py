"""
Informational routes: the index, the OpenAI-compatible model list, and the documentation page. They describe the server,
its model and its routes. The documentation page loads nothing from other sites.
"""

import json
import time
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from .routes import service_of


router = APIRouter()

_STARTED = int(time.time())

_PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{ schema.info.title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
pre, td, th { padding: .3rem .6rem; } pre { border: 1px solid; overflow-x: auto; }
table { border-collapse: collapse; } td, th { border: 1px solid; text-align: left; vertical-align: top; }
</style>
<h1>{{ schema.info.title }}</h1>
<p>{{ about.description }} The schema is <a href="openapi.json">openapi.json</a>.</p>
{% for path, methods in schema.paths.items() %}{% for method, route in methods.items() %}
<h2><code>{{ method.upper() }} {{ path }}</code></h2>
<p>{{ route.description or route.summary }}</p>
{% if route.requestBody %}{% set body = body_of(route) %}
<table><tr><th>field</th><th>default</th><th>description</th></tr>
{% for name, field in body.properties.items() %}
<tr><td><code>{{ name }}</code></td>
<td>{{ "required" if name in body.required else field.default if field.default is defined else "" }}</td>
<td>{{ field.description or "" }}</td></tr>
{% endfor %}</table>
{% endif %}{% endfor %}{% endfor %}
<h2>Example</h2>
<pre>curl {{ url }}v1/rewards -H 'Content-Type: application/json'{{ key }} -d '{{ example }}'</pre>
</html>""")
_EXAMPLE = {"inputs": [{"prompt": "What is 2+2?", "response": "4"}]}


def describe(app: FastAPI) -> dict[str, Any]:
    """Describe a server: its model, kind, context length and routes."""
    service = app.state.service
    kind = "CLoud model, which writes critiques" if service.engine.critique else "classic reward model"
    paths = app.openapi()["paths"]
    return {
        "description": f"Rewards by {service.name}, a {kind}.",
        "model": service.name,
        "critique": service.engine.critique,
        "context_length": service.engine.context_length,
        "docs": "/docs",
        "routes": [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods],
    }


@router.get("/")
async def index(request: Request) -> dict:
    """Describe this server."""
    return describe(request.app)


@router.get("/v1/models")
async def models(request: Request) -> dict:
    """List the model in the format of OpenAI's API."""
    service = service_of(request)
    model = {"id": service.name, "object": "model", "created": _STARTED, "owned_by": "cloud_hf"}
    return {"object": "list", "data": [{**model, "max_model_len": service.engine.context_length}]}


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Describe the routes."""
    schema = request.app.openapi()

    def body_of(route: dict[str, Any]) -> dict[str, Any]:
        name = route["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        return {"required": [], **schema["components"]["schemas"][name]}

    page = _PAGE.render(
        schema=schema,
        about=describe(request.app),
        body_of=body_of,
        example=json.dumps(_EXAMPLE),
        url=str(request.base_url),
        key=' -H "Authorization: Bearer $CLOUD_API_KEY"' if "authorization" in request.headers else "",
    )
    return HTMLResponse(page)
