"""Tables and figures from the pipeline's products and from chains."""
