"""Policy as code: a YAML file of roles, groups, bindings, resources and expected decisions, compared with a tenant and applied to it.

`watchword policy export | diff | apply | test`; see docs/policy-as-code.md. Needs PyYAML beside what the client needs.
"""
