"""Tests of exporters/openvino."""
