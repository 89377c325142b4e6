"""The OpenAPI document: parameters, bodies and answers of each route."""
