"""What the section `endpoint` starts as processes of their own, beside the product."""
