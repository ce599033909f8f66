// Runs when the page is there.

function offerConfigurations() {
  document.querySelectorAll("pre.config").forEach((pre) => {
    const button = make("button", { type: "button" }, "Save config.yaml");
    button.addEventListener("click", () => {
      const link = make("a", { download: "config.yaml", href: URL.createObjectURL(new Blob([pre.textContent], { type: "text/yaml" })) });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    pre.before(button);
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
offerConfigurations();
performance.mark("script");
startMasks();
performance.mark("masks");
if ($("plotly")) startCharts();
else document.documentElement.dataset.ready = "true";
